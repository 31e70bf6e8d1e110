//! Who may do what, as the API server says: every rule in effect for somebody, not answers to chosen questions.

use std::collections::BTreeSet;

use horizon_services::{KubeApi, until};
use serde_json::{Value, json};

use crate::tools::{installed, manifests, text};

const READ: [&str; 3] = ["get", "list", "watch"];
const WRITE: [&str; 4] = ["create", "update", "patch", "delete"];
const KINDS: [&str; 12] = [
    "accesspolicies",
    "approvals",
    "devicedecisions",
    "keyrotations",
    "personalkeys",
    "registrationkeys",
    "revocations",
    "rotationpolicies",
    "securitypolicies",
    "servers",
    "users",
    "virtualnetworks",
];
/// Kinds that are decisions of security.
const DECISIONS: [&str; 6] =
    ["approvals", "devicedecisions", "keyrotations", "revocations", "rotationpolicies", "securitypolicies"];

/// `VERB GROUP/RESOURCE[=NAME]` of everything that `user` may do in a namespace.
pub(crate) fn rights(api: &KubeApi, user: &str, namespace: &str) -> BTreeSet<String> {
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": { "namespace": namespace },
    });
    let said = api
        .kubectl_with(
            &review.to_string(),
            ["create", "--validate=false", "--as", user, "-o", "json", "-f", "-"],
        )
        .unwrap();
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["status"]["incomplete"], json!(false));
    let list = |rule: &Value, field: &str| -> Vec<String> {
        rule[field].as_array().into_iter().flatten().map(|v| v.as_str().unwrap().to_owned()).collect()
    };
    let mut found = BTreeSet::new();
    for rule in said["status"]["resourceRules"].as_array().unwrap() {
        let names = list(rule, "resourceNames");
        for verb in list(rule, "verbs") {
            for group in list(rule, "apiGroups") {
                for resource in list(rule, "resources") {
                    let what = format!("{verb} {group}/{resource}");
                    if names.is_empty() {
                        found.insert(what.clone());
                    }
                    found.extend(names.iter().map(|name| format!("{what}={name}")));
                }
            }
        }
    }
    found
}

/// Binds a role in the namespace of the organisation to somebody who holds nothing else.
fn bind(api: &KubeApi, role: &str) -> String {
    let user = format!("holder-of-{role}");
    let (name, role) = (format!("test-{role}"), format!("--clusterrole={role}"));
    api.kubectl(["create", "rolebinding", &name, &role, "--user", &user, "-n", "horizon"]).unwrap();
    user
}

/// Waits until somebody has exactly these rights; `ours` says which are looked at.
fn expect(
    api: &KubeApi,
    user: &str,
    namespace: &str,
    expected: &BTreeSet<String>,
    ours: impl Fn(&str) -> bool,
) {
    let mut is = BTreeSet::new();
    let reached = until("the roles to be in effect", || {
        is = rights(api, user, namespace);
        is.retain(|right| ours(right));
        (is == *expected).then_some(())
    });
    let too_much: Vec<_> = is.difference(expected).collect();
    let lacking: Vec<_> = expected.difference(&is).collect();
    assert!(reached.is_ok(), "{user} in {namespace}: too much {too_much:#?}, lacking {lacking:#?}");
}

fn each(kinds: &[&str], verbs: &[&str]) -> BTreeSet<String> {
    kinds.iter().flat_map(|kind| verbs.iter().map(move |verb| format!("{verb} horizon.dev/{kind}"))).collect()
}

/// All an admin may do: statuses are read, never written.
fn administered(kinds: &[&str]) -> BTreeSet<String> {
    let mut rights = each(kinds, &[&READ[..], &WRITE, &["deletecollection"]].concat());
    rights.extend(kinds.iter().map(|kind| format!("get horizon.dev/{kind}/status")));
    rights
}

#[test]
fn viewers_editors_and_admins_may_what_they_should_and_nothing_else() {
    let api = installed();
    let daily: Vec<&str> = KINDS.into_iter().filter(|kind| !DECISIONS.contains(kind)).collect();
    let viewer = each(&KINDS, &READ);
    let editor = &viewer | &each(&daily, &WRITE);
    let admin = administered(&KINDS);
    // What everybody may, like asking what they may.
    let everybody = rights(api, "nobody", "horizon");

    let mut roles = vec![
        ("horizon-viewer".to_owned(), viewer.clone()),
        ("horizon-editor".to_owned(), editor.clone()),
        ("horizon-admin".to_owned(), admin.clone()),
        // Who hands out tokens reads Secrets by name.
        ("horizon-credentials".to_owned(), BTreeSet::from(["get /secrets".to_owned()])),
    ];
    for kind in KINDS {
        roles.push((format!("horizon-{kind}-viewer"), each(&[kind], &READ)));
        roles.push((format!("horizon-{kind}-editor"), each(&[kind], &[&READ[..], &WRITE].concat())));
        roles.push((format!("horizon-{kind}-admin"), administered(&[kind])));
    }
    for (role, expected) in roles {
        let user = bind(api, &role);
        // No Secrets, no statuses, nothing of other groups; and nothing in the controller's namespace.
        expect(api, &user, "horizon", &expected, |right| !everybody.contains(right));
        expect(api, &user, "horizon-system", &BTreeSet::new(), |right| !everybody.contains(right));
    }
    for (role, expected) in [("view", viewer), ("edit", editor), ("admin", admin)] {
        expect(api, &bind(api, role), "horizon", &expected, |right| right.contains("horizon.dev/"));
    }
}

#[test]
fn the_roles_speak_of_every_kind() {
    let served = installed().kubectl(["api-resources", "--api-group=horizon.dev", "--output=name"]).unwrap();
    let served: BTreeSet<&str> = served.lines().filter_map(|line| line.split('.').next()).collect();
    assert_eq!(served, KINDS.into());
    let files = std::fs::read_dir(manifests("../crds/yaml")).unwrap();
    assert_eq!(files.count(), KINDS.len(), "crds/kustomization.yaml lists all of them");
}

#[test]
fn the_controller_may_what_it_needs_and_nothing_else() {
    let api = installed();
    let user = "system:serviceaccount:horizon-system:horizon-controller";
    let everybody = rights(api, "system:serviceaccount:default:default", "horizon");
    let everywhere = BTreeSet::from(
        ["mutatingadmissionpolicies", "mutatingadmissionpolicybindings"]
            .map(|what| format!("get admissionregistration.k8s.io/{what}=horizon-changed-by")),
    );
    let mut served = &everywhere | &each(&KINDS, &["list", "watch"]);
    served.extend(KINDS.map(|kind| format!("patch horizon.dev/{kind}/status")));
    served.extend(["create", "patch", "delete"].map(|verb| format!("{verb} /secrets")));
    served.extend(["create", "patch"].map(|verb| format!("{verb} events.k8s.io/events")));
    let mut own = everywhere.clone();
    own.extend(
        ["create /secrets", "get /secrets=horizon-keys", "update /secrets=horizon-keys"].map(str::to_owned),
    );
    own.extend(["create", "patch"].map(|verb| format!("{verb} events.k8s.io/events")));
    own.insert("create coordination.k8s.io/leases".into());
    own.extend(["get", "update"].map(|v| format!("{v} coordination.k8s.io/leases=horizon-controller")));
    for (namespace, expected) in [("horizon", &served), ("horizon-system", &own), ("default", &everywhere)] {
        expect(api, user, namespace, expected, |right| !everybody.contains(right));
    }
    // And only a pod that mounts the token on purpose has it.
    let account = api.get(["serviceaccount/horizon-controller", "-n", "horizon-system"]).unwrap();
    assert_eq!(account["automountServiceAccountToken"], json!(false));
    assert_eq!(text(&account, "/metadata/name"), "horizon-controller");
}
