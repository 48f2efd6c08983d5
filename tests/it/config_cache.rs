//! The client's cache of configuration against real nodes.

use std::path::Path;

use quorate::client::{Client, ConfigCache, ConfigCacheOptions, Reporting, SessionOptions};
use quorate::proto::v1::*;
use tokio::time::timeout;

use super::config::{GROUP, publish};
use super::harness::{Cluster, PATIENCE, eventually, run};

async fn open(client: &Client, directory: &Path) -> ConfigCache {
    let options = ConfigCacheOptions::new("orders-1")
        .label("zone", "eu")
        .prefix(GROUP, "app.")
        .key(GROUP, "extra")
        .directory(directory)
        .reporting(Reporting::HandedOut);
    client.config_cache(options).await.unwrap()
}

async fn has(cache: &ConfigCache, key: &str, content: &str) {
    eventually(&format!("{key} = {content}"), async || {
        let found = cache.get(GROUP, key);
        let found = found.as_ref().and_then(|value| value.text());
        if found == Some(content) { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
}

/// A program starts while no node runs: it has its last values, gray ones included, marked as stale. When
/// the cluster is back it has what is true by then, without a gap and without what was deleted.
#[test]
fn a_cold_start_without_any_node() {
    run(async {
        let mut cluster = Cluster::three().await;
        let client = cluster.client();
        let directory = tempfile::tempdir().unwrap();
        let text = |key: &str, content: &str| publish(key, ConfigFormat::Text, content.as_bytes());
        for (key, content) in [("app.a", "a1"), ("app.b", "b1"), ("extra", "e1"), ("other", "o1")] {
            client.publish_config(text(key, content), None).await.unwrap();
        }
        let labels = LabelPicks { labels: [("zone".to_owned(), "eu".to_owned())].into() };
        let gray = GrayTerms {
            rule: "eu".into(),
            picks: Some(gray_terms::Picks::Labels(labels)),
            ..Default::default()
        };
        let request =
            PublishConfigRequest { gray: Some(Box::new(gray)), ..text("app.a", "a2 for eu") };
        client.publish_config(request, None).await.unwrap();
        let cache = open(&client, directory.path()).await;
        timeout(PATIENCE, cache.synced()).await.unwrap().unwrap();
        has(&cache, "app.a", "a2 for eu").await;
        has(&cache, "app.b", "b1").await;
        assert!(cache.get(GROUP, "other").is_none());
        cache.close().await;
        drop(cache);

        cluster.kill_all();
        let cold = open(&cluster.client(), directory.path()).await;
        let value = cold.get(GROUP, "app.a").unwrap();
        assert_eq!((value.text(), value.rule()), (Some("a2 for eu"), "eu"));
        assert!(value.is_stale() && cold.get(GROUP, "extra").unwrap().is_stale());
        assert!(!cold.status().synced);
        assert_eq!(cold.all().len(), 3);

        cluster.spawn_all();
        cluster.ready(&cluster.ids()).await;
        timeout(PATIENCE, cold.synced()).await.unwrap().unwrap();
        assert!(cold.all().iter().all(|value| !value.is_stale()));
        let client = cluster.client();
        let delete =
            DeleteConfigRequest { group: GROUP.into(), key: "app.b".into(), ..Default::default() };
        client.delete_config(delete, None).await.unwrap();
        client.publish_config(text("app.c", "c1"), None).await.unwrap();
        has(&cold, "app.c", "c1").await;
        eventually("the deletion", async || match cold.get(GROUP, "app.b") {
            None => Ok(()),
            Some(value) => Err(format!("{value:?}")),
        })
        .await;
        // A change while nobody leads comes as soon as somebody does.
        let session = client.session(SessionOptions::default()).await.unwrap();
        let leader = cluster.leader().await;
        cluster.kill(leader);
        client.publish_config(text("extra", "e2"), Some(&session)).await.unwrap();
        has(&cold, "extra", "e2").await;
        cold.close().await;
        cluster.kill_all();
        let again = open(&cluster.client(), directory.path()).await;
        let found: Vec<(String, String)> = again
            .all()
            .iter()
            .map(|value| (value.key().to_owned(), value.text().unwrap().to_owned()))
            .collect();
        let expected = [("app.a", "a2 for eu"), ("app.c", "c1"), ("extra", "e2")];
        assert_eq!(found, expected.map(|(key, text)| (key.to_owned(), text.to_owned())));
    });
}
