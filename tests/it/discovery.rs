//! The client's discovery against real nodes.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt as _;
use quorate::client::{Client, Discovery, DiscoveryOptions};
use quorate::proto::v1::*;
use tokio::time::timeout;
use tower::discover::Change;

use super::harness::{Cluster, PATIENCE, eventually, instance, run};

async fn usable(discovery: &Discovery, wanted: &[&str]) {
    eventually(&format!("{wanted:?}"), async || {
        let state = discovery.state();
        let found: Vec<&str> = state.usable().map(|it| it.id.as_str()).collect();
        if found == wanted { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
}

async fn deregister(client: &Client, id: &str) {
    let request =
        DeregisterRequest { service: "orders".into(), id: id.into(), ..Default::default() };
    assert!(client.deregister(request, None).await.unwrap().removed);
}

async fn set(client: &Client, id: &str, change: impl FnOnce(&mut UpdateInstanceRequest)) {
    let mut request =
        UpdateInstanceRequest { service: "orders".into(), id: id.into(), ..Default::default() };
    change(&mut request);
    client.update_instance(request, None).await.unwrap();
}

/// What is registered, changed and deregistered reaches whoever follows the service; who is critical,
/// draining or of no weight is known and not usable.
#[test]
fn a_service_is_followed() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        let discovery = client.discovery(DiscoveryOptions::new("orders")).await.unwrap();
        timeout(PATIENCE, discovery.synced()).await.unwrap().unwrap();
        assert!(discovery.state().instances.is_empty());
        let mut changes = Box::pin(discovery.changes());
        for id in ["a", "b", "c", "d"] {
            client.register(instance("orders", id), None).await.unwrap();
        }
        client.register(instance("other", "x"), None).await.unwrap();
        usable(&discovery, &["a", "b", "c", "d"]).await;
        set(&client, "a", |request| request.health = Health::Critical.into()).await;
        set(&client, "b", |request| request.admin = Admin::Draining.into()).await;
        set(&client, "c", |request| request.weight = Some(0)).await;
        usable(&discovery, &["d"]).await;
        assert_eq!(discovery.state().instances.len(), 4);
        deregister(&client, "d").await;
        usable(&discovery, &[]).await;
        set(&client, "c", |request| request.weight = Some(7)).await;
        usable(&discovery, &["c"]).await;

        // The same as changes, whatever was coalesced: in the end "c" with its weight.
        let mut known: BTreeMap<String, Arc<Instance>> = BTreeMap::new();
        while known.len() != 1 || known.get("c").is_none_or(|it| it.weight != Some(7)) {
            match timeout(PATIENCE, changes.next()).await.unwrap().unwrap().unwrap() {
                Change::Insert(id, instance) => _ = known.insert(id, instance),
                Change::Remove(id) => assert!(known.remove(&id).is_some(), "{id} was not there"),
            }
        }
    });
}

/// Below the protect threshold everybody counts as well, and the last ones stay when the list is empty;
/// without a threshold an empty list is what it says.
#[test]
fn a_threshold_protects_from_an_empty_list() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        let put = |percent| Service {
            name: "orders".into(),
            protect_threshold_percent: percent,
            ..Default::default()
        };
        client.put_service(put(50), None).await.unwrap();
        for id in ["a", "b", "c"] {
            client.register(instance("orders", id), None).await.unwrap();
        }
        let discovery = client.discovery(DiscoveryOptions::new("orders")).await.unwrap();
        usable(&discovery, &["a", "b", "c"]).await;
        set(&client, "a", |request| request.health = Health::Critical.into()).await;
        usable(&discovery, &["b", "c"]).await;
        assert!(!discovery.state().protected);
        set(&client, "b", |request| request.health = Health::Critical.into()).await;
        usable(&discovery, &["a", "b", "c"]).await;
        assert!(discovery.state().protected);
        deregister(&client, "a").await;
        // Half of them are well: as many as the threshold asks for.
        usable(&discovery, &["c"]).await;
        deregister(&client, "b").await;
        deregister(&client, "c").await;
        eventually("protection", async || {
            let state = discovery.state();
            let ids: Vec<&String> = state.instances.keys().collect();
            // Whoever was there in the last state that was not empty.
            if state.protected && !ids.is_empty() { Ok(()) } else { Err(format!("{state:?}")) }
        })
        .await;
        client.put_service(put(0), None).await.unwrap();
        usable(&discovery, &[]).await;
    });
}

/// While no node can be reached the last state stays, and a program that starts then has it from disk,
/// marked as stale. When the cluster is back both follow it again.
#[test]
fn an_absent_cluster_takes_nothing_away() {
    run(async {
        let mut cluster = Cluster::three().await;
        let client = cluster.client();
        let directory = tempfile::tempdir().unwrap();
        let options = DiscoveryOptions::new("orders").directory(directory.path());
        for id in ["a", "b"] {
            client.register(instance("orders", id), None).await.unwrap();
        }
        let discovery = client.discovery(options.clone()).await.unwrap();
        usable(&discovery, &["a", "b"]).await;
        let revision = discovery.state().revision;
        eventually("the file", async || {
            let cold = client.discovery(options.clone()).await.unwrap();
            let state = cold.state();
            if state.revision == revision { Ok(()) } else { Err(format!("{state:?}")) }
        })
        .await;

        cluster.kill_all();
        let cold = cluster.client().discovery(options.clone()).await.unwrap();
        let state = cold.state();
        assert_eq!(state.usable().map(|it| it.id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert!(state.stale && !cold.status().synced);
        assert!(!discovery.state().stale);

        cluster.spawn_all();
        cluster.ready(&cluster.ids()).await;
        timeout(PATIENCE, cold.synced()).await.unwrap().unwrap();
        let client = cluster.client();
        deregister(&client, "a").await;
        client.register(instance("orders", "c"), None).await.unwrap();
        usable(&cold, &["b", "c"]).await;
        assert!(!cold.state().stale);
        usable(&discovery, &["b", "c"]).await;
    });
}
