//! An operator's hand: `hold`, `release` and `approve`.

use crate::{
    chain::{Chain, Ended, finish},
    pair::{GOLDDR, NAMESPACE, Pair, SCOPE, kubeconfig_path},
    promotion::audit,
    system::{LIFEBOAT, cluster_script},
};

fn say(words: &[&str]) -> Ended {
    let mut command = cluster_script("enter");
    command.args(["golddr", LIFEBOAT]).args(words).args(["--context", "golddr", "-n", NAMESPACE, "--scope", SCOPE]);
    finish(command.env("KUBECONFIG", kubeconfig_path()))
}

/// Both sites by their API servers, from this machine.
fn status(more: &[&str]) -> Ended {
    let mut command = std::process::Command::new(LIFEBOAT);
    command.args(["status", "--context", "golddr", "-n", NAMESPACE, "--scope", SCOPE]);
    command.args(["--peer-context", "gold", "--peer-namespace", NAMESPACE]).args(more);
    finish(command.env("KUBECONFIG", kubeconfig_path()))
}

fn annotation(key: &str) -> Option<String> {
    let map = GOLDDR.get(&["configmap", "lifeboat-dr"]);
    map["metadata"]["annotations"][format!("lifeboat/{key}")].as_str().map(ToOwned::to_owned)
}

#[test]
fn operator_holds_releases_and_approves_with_who_and_why_in_the_audit() {
    let pair = Pair::ready();
    let chain = Chain::calm(&pair);
    let calm = status(&["--quick"]);
    assert_eq!((calm.code, calm.reason()), (Some(0), "context gold leads"), "{calm:#?}");
    let sites = &calm.outcome["sites"];
    assert_eq!((&sites[0]["role"], &sites[1]["role"]), (&"standby".into(), &"primary".into()));
    assert_eq!(sites[0]["members"].as_array().unwrap().len(), 2);
    let early = say(&["approve", "--reason", "just in case"]);
    assert_eq!((early.code, annotation("approve")), (Some(3), None), "{early:#?}");
    assert_eq!(say(&["hold"]).code, Some(2), "a hold without a reason");
    let dry = say(&["hold", "--reason", "drill", "--dry-run"]);
    assert_eq!((dry.code, annotation("hold")), (Some(0), None), "{dry:#?}");
    let held = say(&["hold", "--reason", "Gold's switches are replaced"]);
    assert_eq!(
        (held.code, annotation("hold").as_deref()),
        (Some(0), Some("Gold's switches are replaced")),
        "{held:#?}"
    );
    assert_eq!(say(&["hold", "--reason", "drill", "--for", "1h"]).code, Some(0));
    let shown = status(&[]);
    let stopped: Vec<_> =
        shown.outcome["promotion"]["evidence"].as_array().unwrap().iter().filter(|e| e["passed"] == false).collect();
    assert!(
        stopped.iter().any(|e| e["guard"] == "hold") && stopped.iter().any(|e| e["guard"] == "second-path"),
        "{shown:#?}"
    );
    assert_eq!((shown.code, annotation("hold").is_some()), (Some(0), true), "a look changes nothing");
    assert!(annotation("maintenance-until").is_some());

    let _cuts = chain.isolate_gold();
    let refused = chain.run(&["--mode", "approve"]);
    refused.assert_refused_by("hold");
    assert!(refused.stopped_by().contains(&"maintenance"), "{refused:#?}");
    let released = say(&["release", "--reason", "done"]);
    assert_eq!((released.code, annotation("hold"), annotation("maintenance-until")), (Some(0), None, None));
    assert_eq!(say(&["release", "--reason", "again"]).outcome["outcome"], "nothing-to-do");
    let waiting = chain.run(&["--mode", "approve"]);
    assert_eq!(waiting.outcome["phase"], "awaiting-approval", "{waiting:#?}");
    assert_eq!(say(&["approve", "--reason", "x", "--epoch", "7"]).code, Some(3), "the epoch of another alert");
    let approved = say(&["approve", "--reason", "Gold's hall is dark", "--epoch", "1"]);
    assert_eq!(approved.code, Some(0), "{approved:#?}");
    let promoted = chain.run(&["--mode", "approve"]);
    assert_eq!((promoted.code, &promoted.outcome["outcome"]), (Some(0), &"done".into()), "{promoted:#?}");
    let both = status(&["--quick"]);
    assert_eq!(both.code, Some(4), "{both:#?}");
    assert!(both.reason().starts_with("BOTH SITES LEAD"), "{both:#?}");
    let record = GOLDDR.record();
    assert_eq!((&record["promotion"]["by"], annotation("approve")), (&"approved".into(), None), "{record:#}");
    for said in [
        "held: Gold's switches",
        "released (lifeboat/hold, lifeboat/maintenance-until): done",
        "Gold's hall is dark (by ",
    ] {
        assert_eq!(audit(&record, said), 1, "{said}: {record:#}");
    }
}
