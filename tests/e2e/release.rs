//! The life of a release: what an uninstall leaves, and who leads when a site comes back.

use std::time::Duration;

use serde_json::Value;

use crate::{
    chain::Chain,
    pair::{GOLD, GOLDDR, Pair, Site, delete_members, install, install_standby, release_gold},
    system::await_condition,
};

/// What the init container `follow` of a member last said, with its exit code.
fn follow_said(site: Site) -> Result<(u64, String), String> {
    let pods: Value =
        crate::system::json(&site.try_kubectl(&["get", "pods", "-l", "application=patroni", "-o", "json"])?);
    let statuses = pods["items"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|pod| pod["status"]["initContainerStatuses"].as_array().cloned().unwrap_or_default());
    let ended = statuses.filter(|status| status["name"] == "follow").find_map(|status| {
        let ended =
            [&status["state"]["terminated"], &status["lastState"]["terminated"]].into_iter().find(|s| s.is_object())?;
        Some((ended["exitCode"].as_u64()?, ended["message"].as_str().unwrap_or_default().to_owned()))
    });
    ended.ok_or_else(|| format!("follow did not end yet: {pods:#}"))
}

/// Its members were started, and none of them leads or may lead.
fn assert_held(site: Site) {
    let said = await_condition("the old primary is held", Duration::from_mins(2), || match follow_said(site)? {
        (3, said) => Ok(said),
        other => Err(format!("{other:?}")),
    });
    assert!(said.contains("second primary") || said.contains("was held"), "{said}");
    let told = site.get(&["events", "--field-selector", "reason=OldPrimaryHeld"]);
    assert!(!told["items"].as_array().unwrap().is_empty(), "nobody was told");
    assert_eq!(site.record()["phase"], "held", "{:#}", site.record());
    assert!(site.try_session("postgres", "postgres").is_err(), "the old primary accepts sessions");
}

fn uninstall(site: Site) {
    site.helm(&["uninstall", "lifeboat", "--wait", "--timeout=2m"]);
    let left = site.kubectl(&["get", "persistentvolumeclaims,configmaps", "-o", "name"]);
    for kept in ["persistentvolumeclaim/", "configmap/lifeboat-dr"] {
        assert!(left.contains(kept), "{kept} is gone: {left}");
    }
    assert!(!left.contains("lifeboat-config"), "{left}");
}

/// Gold is lost, GoldDR promoted. Then Gold comes back by a restart of its members, then by an install over its kept volumes: it does not
/// lead. GoldDR is uninstalled and installed anew over its volumes, beside an old configuration in its data directory: it stays the
/// primary, with its rows. Without it Gold leads again. GoldDR over its volumes, but without its record, is refused.
#[test]
fn old_primary_that_returns_is_held_and_a_promoted_site_stays_primary() {
    let pair = Pair::ready();
    let chain = Chain::calm(&pair);
    GOLD.session().query("CREATE TABLE kept (id int); INSERT INTO kept VALUES (1)");
    chain.run(&[]);
    {
        let _cuts = chain.isolate_gold();
        let promoted = chain.run(&[]);
        assert_eq!(promoted.outcome["outcome"], "done", "{promoted:#?}");
    }
    GOLDDR.session().query("INSERT INTO kept VALUES (2)");
    // The link is whole again, and Gold never went away.
    let both = chain.run(&[]);
    assert!(both.code == Some(3) && both.reason().contains("both sites lead"), "{both:#?}");
    let told = GOLDDR.get(&["events", "--field-selector", "reason=SplitBrain"]);
    assert!(!told["items"].as_array().unwrap().is_empty(), "nobody was told");

    delete_members(GOLD);
    assert_held(GOLD);
    uninstall(GOLD);
    install(GOLD, &["--wait=false", "--no-hooks"]);
    assert_held(GOLD);

    let leader = GOLDDR.leader().unwrap();
    let old =
        r#"echo '{"standby_cluster":{"host":"nowhere","port":9}}' > /var/lib/postgresql/data/patroni.dynamic.json"#;
    GOLDDR.kubectl(&["exec", &leader, "-c", "patroni", "--", "sh", "-c", old]);
    uninstall(GOLDDR);
    install_standby();
    assert_eq!(GOLDDR.record()["phase"], "promoted");
    assert!(!GOLDDR.is_standby(), "an old configuration won: {}", GOLDDR.config_text());
    let session = GOLDDR.session();
    assert_eq!(session.one("SELECT pg_is_in_recovery()"), "f");
    assert_eq!(session.one("SELECT string_agg(id::text, ',' ORDER BY id) FROM kept"), "1,2");
    drop(session);

    // The other site is ended. That nobody answers proves nothing: a person says that Gold may lead again.
    GOLDDR.helm(&["uninstall", "lifeboat", "--wait", "--timeout=2m"]);
    delete_members(GOLD);
    assert_held(GOLD);
    release_gold();
    await_condition("Gold leads again", Duration::from_mins(3), || {
        GOLD.try_session("postgres", "postgres")?
            .try_query("SELECT pg_logical_emit_message(true, 'e2e', 'again')")
            .map(drop)
    });
    assert_eq!(GOLD.record()["phase"], "watching", "{:#}", GOLD.record());

    // GoldDR's volumes outlived the record that said whose data it is: neither overwritten nor led with.
    GOLDDR.kubectl(&["delete", "configmap", "lifeboat-dr"]);
    install(GOLDDR, &["--wait=false", "--no-hooks"]);
    let (code, said) =
        await_condition("what follow says to unknown data", Duration::from_mins(2), || follow_said(GOLDDR));
    assert!(code == 3 && said.contains("whose data it is can't be known"), "{code}: {said}");
    assert!(GOLDDR.leader().is_none_or(|leader| leader.is_empty()), "a member leads with unknown data");
}
