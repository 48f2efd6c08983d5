//! `quorate service resolve` and `spread` against a real cluster.

use std::time::Duration;

use quorate::client::balance::{Endpoint, Origin, Policy, Snapshot, hash};
use serde_json::{Value, json};

use super::cli::Shell;
use super::harness::{Cluster, instance, run};

fn ids(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|it| it["id"].as_str().unwrap()).collect()
}

/// Where a key goes and why, what is left out and why; how keys spread and how many of them move.
#[test]
fn where_keys_go_by_command() {
    run(async {
        let cluster = Cluster::three().await;
        let (client, shell) = (cluster.client(), Shell::of(&cluster));
        for id in ["a", "b", "c", "d", "e", "f"] {
            client.register(instance("orders", id), None).await.unwrap();
        }
        shell.run("service maint orders e --drain").await;
        shell.run("service put orders --policy ring_hash --policy-parameter points=200").await;

        // As the library maps it, which the golden vectors of other implementations check.
        let policy: Policy = "ring_hash?points=200".parse().unwrap();
        let endpoints = ["a", "b", "c", "d", "f"].map(|id| Endpoint::new(id, ()));
        let snapshot = Snapshot::new(&policy, &Origin::default(), endpoints.to_vec());
        for key in ["u-1", "u-2", "u-3", "u-4", "u-5"] {
            let pick = snapshot.pick(Some(hash(key.as_bytes())), Duration::ZERO, 1).unwrap();
            let found = shell.json(&format!("service resolve orders --key {key}")).await;
            assert_eq!(found["policy"], "ring_hash?points=200");
            assert_eq!(found["policy_from"], "set by the service");
            let order = ids(&found["candidates"]);
            assert_eq!(order[0], pick.endpoint().id, "{key}");
            let mut all = order.clone();
            all.sort_unstable();
            assert_eq!(all, ["a", "b", "c", "d", "f"]);
            assert_eq!(found["left_out"], json!([{"id": "e", "why": "draining"}]));
            // Without the first one the second one is it, and the rest stay in order.
            let without = format!("service resolve orders --key {key} --without {}", order[0]);
            assert_eq!(ids(&shell.json(&without).await["candidates"]), order[1..]);
        }
        let text = shell.run("service resolve orders --key u-1 --policy random").await;
        assert!(text.contains("does not look at keys"), "{text}");
        assert!(text.contains("as asked for"), "{text}");

        let spread = shell.json("service spread orders --keys 10000 --without b").await;
        let keys = |it: &Value| it["keys"].as_u64().unwrap();
        let instances = spread["instances"].as_array().unwrap();
        assert_eq!(instances.iter().map(keys).sum::<u64>(), 10_000);
        let of_b = instances.iter().find(|it| it["id"] == "b").map(keys).unwrap();
        let moved = json!({"instances": ["b"], "of_gone": of_b, "of_others": 0});
        assert_eq!(spread["without"], moved);
        let peak = spread["peak_to_mean"].as_f64().unwrap();
        assert!((1.0..1.5).contains(&peak), "{peak}");
        let spread = shell.json("service spread orders --keys 10000 --policy maglev").await;
        assert_eq!(spread["without"], Value::Null);

        shell.fails("service resolve nothing --key x", 1, "nothing").await;
        shell.fails("service resolve orders --key x --without z", 1, "z").await;
        let unknown = "service resolve orders --key x --policy fastest";
        shell.fails(unknown, 2, "least_request").await;
    });
}
