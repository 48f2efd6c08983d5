//! The balancing policy of a service: what the API refuses, and `quorate service policy`.

use quorate::error::Error;
use quorate::proto::v1;
use serde_json::json;

use super::cli::{Shell, has_fields};
use super::harness::{Cluster, instance, run};

fn service(policy: &str, parameters: &[(&str, &str)]) -> v1::Service {
    let pairs = parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    v1::Service {
        name: "orders".into(),
        policy: policy.into(),
        policy_parameters: pairs.collect(),
        ..Default::default()
    }
}

/// What no client would understand is refused through every node, alone and as a step of a transaction, and
/// changes nothing.
#[test]
fn a_policy_that_nobody_knows_is_refused() {
    run(async {
        let cluster = Cluster::three().await;
        let good = service("ring_hash", &[("bound", "1.25")]);
        let put = cluster.client().put_service(good.clone(), None).await.unwrap();
        assert!(put.created);
        for (bad, field, value) in [
            (service("p2c", &[]), "service.policy", "p2c"),
            (service("random", &[("points", "1")]), "service.policy_parameters", "points"),
            (service("maglev", &[("bound", "1")]), "service.policy_parameters[bound]", "1"),
        ] {
            for id in cluster.ids() {
                let client = cluster.at(id);
                let refused = client.put_service(bad.clone(), None).await.unwrap_err();
                let Error::Invalid { field: named, value: given, allowed } = &refused else {
                    panic!("{refused:?}")
                };
                assert_eq!((named.as_str(), given.as_str()), (field, value));
                assert!(!allowed.is_empty());
            }
            let txn = quorate::client::txn::Txn::new().then(bad.clone());
            let refused = txn.commit(&cluster.client(), None).await.unwrap_err();
            assert!(refused.to_string().contains(value), "{refused}");
        }
        let name = v1::GetServiceRequest { name: "orders".into(), ..Default::default() };
        let found = cluster.client().get_service(name).await.unwrap().service.unwrap();
        assert_eq!((found.policy, found.policy_parameters), (good.policy, good.policy_parameters));
    });
}

/// Show, set, change one parameter, and off; whatever else is set for the service stays.
#[test]
fn policies_by_command() {
    run(async {
        let cluster = Cluster::three().await;
        let shell = Shell::of(&cluster);
        shell.fails("service policy orders", 1, "does not exist").await;
        // It exists through its instances.
        cluster.client().register(instance("orders", "a"), None).await.unwrap();
        let none = shell.json("service policy orders").await;
        has_fields(&none, "revision namespace service policy text parameters");
        assert_eq!((&none["policy"], &none["parameters"]), (&json!(null), &json!({})));
        let text = shell.run("service policy orders").await;
        assert!(text.contains("clients choose for themselves"), "{text}");
        shell.fails("service policy orders --set bound=2", 2, "name one").await;

        shell.run("service put orders --protect-threshold 30 --meta team=shop").await;
        let set = shell.json("service policy orders ring_hash --set bound=1.25 --set points=200");
        let set = set.await;
        assert_eq!(set["text"], "ring_hash?points=200&bound=1.25");
        assert_eq!(set["policy"], "ring_hash");
        assert_eq!(set["parameters"]["panic_percent"], "50", "{set}");
        let all = shell.json("service get orders").await;
        let settings = &all["service"];
        assert_eq!(settings["policy"], "ring_hash");
        assert_eq!(settings["policy_parameters"], json!({"bound": "1.25", "points": "200"}));
        assert_eq!(settings["protect_threshold_percent"], 30);
        assert_eq!(settings["metadata"], json!({"team": "shop"}));

        // One parameter of it, back to its default as well.
        let set = shell.json("service policy orders --set bound=off").await;
        assert_eq!(set["text"], "ring_hash?points=200");
        let set = shell.json("service policy orders maglev?bound=2 --set zone=prefer").await;
        assert_eq!(set["text"], "maglev?bound=2&zone=prefer");
        let table = shell.run("service policy orders -w table").await;
        for expected in ["maglev?bound=2&zone=prefer", "| PARAMETER", "| table_size", "| bound"] {
            assert!(table.contains(expected), "{expected}: {table}");
        }
        assert_eq!(shell.json("service policy orders").await["text"], set["text"]);

        shell.fails("service policy orders p2c", 2, "allowed: ring_hash, ketama").await;
        shell.fails("service policy orders random --set points=1", 2, "allowed: zone").await;
        shell.fails("service policy orders --set bound=1", 2, "1.01..=100").await;
        shell.fails("service policy orders random --off", 2, "cannot be used").await;
        shell.fails("service put orders --policy p2c", 1, "service.policy").await;
        assert_eq!(shell.json("service policy orders").await["text"], set["text"]);

        let off = shell.json("service policy orders --off").await;
        assert_eq!((&off["policy"], &off["text"]), (&json!(null), &json!(null)));
        let all = shell.json("service get orders").await;
        assert_eq!(
            (&all["service"]["policy"], &all["service"]["protect_threshold_percent"]),
            (&json!(""), &json!(30))
        );
        // A service that nobody has put is put.
        let new = shell.json("service policy payments least_request").await;
        assert_eq!(new["text"], "least_request");
        assert_eq!(shell.json("service policy payments").await["policy"], "least_request");
    });
}

/// Settings that others change at the same time are not lost.
#[test]
fn a_policy_is_set_beside_other_changes() {
    run(async {
        let cluster = Cluster::three().await;
        let shell = Shell::of(&cluster);
        let client = cluster.client();
        client.put_service(service("", &[]), None).await.unwrap();
        let others = async {
            for number in 0..200u32 {
                let name = v1::GetServiceRequest { name: "orders".into(), ..Default::default() };
                let found = client.get_service(name).await.unwrap().service.unwrap();
                let expected_mod_revision = found.mod_revision;
                let protect_threshold_percent = number % 100;
                let changed = v1::Service { protect_threshold_percent, ..found };
                let request = v1::PutServiceRequest {
                    service: Some(changed),
                    expected_mod_revision,
                    request_id: None,
                };
                // The command may have been quicker.
                match client.put_service(request, None).await {
                    Ok(_) | Err(Error::CompareFailed { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        };
        let commands = async {
            for percent in [110, 120, 130] {
                let bound = f64::from(percent) / 100.0;
                shell.run(&format!("service policy orders ring_hash --set bound={bound}")).await;
                let line = "service policy orders --set zone=prefer";
                let set = shell.json(line).await;
                assert_eq!(set["text"], format!("ring_hash?bound={bound}&zone=prefer"));
            }
        };
        tokio::join!(others, commands);
        let last = shell.json("service policy orders").await;
        assert_eq!(last["text"], "ring_hash?bound=1.3&zone=prefer");
    });
}
