//! What a cluster is for: register, discover and watch, through each of its nodes.

use std::time::Duration;

use quorate::client::{WatchRange, WatchUpdate};
use quorate::proto::v1;
use tokio::time::timeout;

use super::harness::{Cluster, PATIENCE, get_instance, instance, run};

/// A write through any node is seen by a linearizable read through any other as soon as it is
/// acknowledged, with the revision that the writer was told.
#[test]
fn what_one_node_acknowledged_every_node_shows() {
    run(async {
        let cluster = Cluster::three().await;
        let mut before = 0;
        for round in 0..5 {
            for writer in cluster.ids() {
                let id = format!("web-{writer}-{round}");
                let answer = cluster.at(writer).register(instance("web", &id), None).await.unwrap();
                assert!(answer.created);
                let header = answer.header.unwrap();
                assert_eq!((header.revision, header.node_id), (answer.mod_revision, writer));
                assert!(header.revision > before, "{header:?} after {before}");
                before = header.revision;
                for reader in cluster.ids() {
                    let answer = cluster.at(reader).get_instance(get_instance("web", &id)).await;
                    let answer = answer.unwrap_or_else(|error| panic!("{id} at {reader}: {error}"));
                    let header = answer.header.unwrap();
                    assert!(header.revision >= before, "{header:?}");
                    assert_eq!(header.consistency(), v1::Consistency::Linearizable);
                    assert_eq!(header.node_id, reader);
                    let found = answer.instance.unwrap();
                    assert_eq!(found.mod_revision, before);
                    assert_eq!(found.endpoints, instance("web", &id).endpoints);
                    assert_eq!(found.namespace, "default");
                }
            }
        }
        // Removed through one node it is gone on every node.
        let request = v1::DeregisterRequest {
            service: "web".into(),
            id: "web-1-0".into(),
            ..Default::default()
        };
        assert!(cluster.at(3).deregister(request.clone(), None).await.unwrap().removed);
        for reader in cluster.ids() {
            let found = cluster.instances(reader, "web").await;
            assert_eq!(found.len(), 14, "node {reader}");
            assert!(!found.contains_key("web-1-0"), "node {reader}");
        }
        assert!(!cluster.at(1).deregister(request, None).await.unwrap().removed);
        cluster.same_digest().await;
    });
}

/// A watch on each node begins with what there is and then shows every change once, with the
/// revision that the writer was told; a watch of the whole namespace shows all its services.
#[test]
fn a_watch_on_each_node_shows_what_is_and_what_changes() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        let first = client.register(instance("web", "a"), None).await.unwrap().mod_revision;
        client.register(instance("other", "a"), None).await.unwrap();

        let mut watches = Vec::new();
        for node in cluster.ids() {
            let at = cluster.at(node);
            let web = WatchRange::Service { namespace: String::new(), service: "web".into() };
            let all = WatchRange::Namespace { namespace: "default".into() };
            for (range, count) in [(web, 1), (all, 2)] {
                let mut watch = at.watch(range);
                let update = timeout(PATIENCE, watch.next()).await.unwrap().unwrap().unwrap();
                let WatchUpdate::Snapshot { revision, events } = update else {
                    panic!("node {node} begins with {update:?}");
                };
                assert!(revision > first);
                assert_eq!(events.len(), count, "node {node}: {events:?}");
                watches.push((node, count, watch));
            }
        }

        let changed = client.register(instance("web", "b"), None).await.unwrap().mod_revision;
        let request =
            v1::DeregisterRequest { service: "web".into(), id: "a".into(), ..Default::default() };
        let removed = client.deregister(request, None).await.unwrap().header.unwrap().revision;
        let elsewhere = client.register(instance("other", "b"), None).await.unwrap().mod_revision;
        let end = client.register(instance("web", "c"), None).await.unwrap().mod_revision;

        for (node, services, mut watch) in watches {
            let mut seen = Vec::new();
            while watch.revision() < end {
                let update = timeout(PATIENCE, watch.next()).await.unwrap().unwrap().unwrap();
                match update {
                    WatchUpdate::Changes { revision, events } => {
                        assert_eq!(events.len(), 1, "{events:?}");
                        let event = &events[0];
                        let Some(v1::watch_event::Record::Instance(instance)) = &event.record
                        else {
                            panic!("{event:?}");
                        };
                        let name = format!("{}/{}", instance.service, instance.id);
                        seen.push((revision, name, event.deleted));
                    }
                    WatchUpdate::Bookmark { .. } => {}
                    WatchUpdate::Snapshot { .. } => panic!("node {node} begins again"),
                }
            }
            let mut expected = vec![
                (changed, "web/b".to_owned(), false),
                (removed, "web/a".to_owned(), true),
                (elsewhere, "other/b".to_owned(), false),
                (end, "web/c".to_owned(), false),
            ];
            if services == 1 {
                expected.remove(2);
            }
            assert_eq!(seen, expected, "node {node}");
        }
    });
}

/// Discovery says which instances can take calls, and when so few can that it shows all.
#[test]
fn discovery_filters_and_protects() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        let service =
            v1::Service { name: "web".into(), protect_threshold_percent: 50, ..Default::default() };
        client.put_service(service, None).await.unwrap();
        for (id, zone, health) in [
            ("a", "east", v1::Health::Passing),
            ("b", "west", v1::Health::Passing),
            ("c", "west", v1::Health::Critical),
        ] {
            let mut one = instance("web", id);
            one.zone = zone.into();
            one.set_health(health);
            client.register(one, None).await.unwrap();
        }
        let find = async |node: u64, healthy_only: bool, zone: &str| {
            let filter =
                v1::InstanceFilter { healthy_only, zone: zone.into(), ..Default::default() };
            let request = v1::ListInstancesRequest {
                service: "web".into(),
                filter: Some(filter),
                ..Default::default()
            };
            let at = cluster.at(node).with_timeout(Duration::from_secs(30));
            let answer = at.list_instances(request).await.unwrap();
            let ids: Vec<String> = answer.instances.into_iter().map(|one| one.id).collect();
            (ids.join(" "), answer.protected)
        };
        for node in cluster.ids() {
            assert_eq!(find(node, false, "").await, ("a b c".to_owned(), false));
            assert_eq!(find(node, true, "").await, ("a b".to_owned(), false));
            assert_eq!(find(node, true, "east").await, ("a".to_owned(), false));
        }
        let mut sick = v1::UpdateInstanceRequest {
            service: "web".into(),
            id: "b".into(),
            ..Default::default()
        };
        sick.set_health(v1::Health::Critical);
        client.update_instance(sick, None).await.unwrap();
        for node in cluster.ids() {
            assert_eq!(find(node, true, "").await, ("a b c".to_owned(), true), "1 of 3 is healthy");
        }
    });
}
