//! Accounts of administrators: signing in, what locks them, sessions and what ends them.

use std::collections::BTreeSet;

use horizon_controller_core::account::{AccountPolicy, Permission, Role};
use jiff::Timestamp;
use zeroize::Zeroizing;

use super::kit::{Kit, at, conformance};
use crate::{
    account::{recovery_codes, recovery_digest, totp},
    store::{
        Actor, AdminChange, AdminError, AdminSessionPlace, AdminView, Begun, Caller, Credentials, Duty,
        EventFilter, IdempotentRequest, LoginError, LogoutReason, NewAdmin, OneTimePassword, OwnError,
        Repeated, RoleView, SessionRefused, WhichAdmin,
    },
};

const FIRST: &str = "first one-time words";
const SECOND: &str = "rain tractor velvet";

fn secret(text: &str) -> Zeroizing<String> {
    Zeroizing::new(text.to_owned())
}

fn caller() -> Caller {
    Caller::new("192.0.2.1".parse().unwrap(), "test/1", Some("SE".into()))
}

fn root() -> Actor {
    Actor::Admin("root".into())
}

fn policy() -> AccountPolicy {
    AccountPolicy::default()
}

fn roles(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

pub(super) async fn account(kit: &Kit, name: &str, role: &str) -> AdminView {
    kit.store.ensure_roles(at(0)).await.unwrap();
    let password = OneTimePassword { text: secret(FIRST), until: at(3600) };
    let new = NewAdmin {
        username: name.into(),
        email: Some(format!("{name}@example.org")),
        full_name: String::new(),
        roles: roles(&[role]),
        password,
    };
    kit.store.create_admin(&new, &root(), at(0)).await.unwrap()
}

fn credentials(name: &str, password: &str, code: Option<&str>) -> Credentials {
    Credentials { username: name.into(), password: secret(password), code: code.map(secret) }
}

async fn sign_in(kit: &Kit, given: &Credentials, now: Timestamp) -> Result<Begun, LoginError> {
    kit.store.sign_in(given, &caller(), &policy(), now).await
}

/// Signs in for the first time, changes the password and sets up one-time codes. Returns the secret and recovery codes.
pub(super) async fn settle(kit: &Kit, name: &str) -> (Begun, horizon_model::Secret, Vec<Zeroizing<String>>) {
    let first = sign_in(kit, &credentials(name, FIRST, None), at(1)).await.unwrap();
    assert_eq!(first.who.duties, [Duty::ChangePassword, Duty::EnrolTotp]);
    let place = (&caller(), &policy());
    let changed = kit
        .store
        .change_own_password(&first.who, &secret(FIRST), &secret(SECOND), place, at(2))
        .await
        .unwrap();
    assert_eq!(changed.1, [first.who.session]);
    assert_eq!(changed.0.who.duties, [Duty::EnrolTotp]);
    let totp_secret = kit.store.begin_totp(&changed.0.who).await.unwrap();
    let recovery = recovery_codes();
    let digests = recovery.iter().map(|code| recovery_digest(code)).collect();
    let code = secret(&totp::code(&totp_secret, at(30)));
    let (begun, _) = kit
        .store
        .confirm_totp(&changed.0.who, &code, &digests, (&caller(), &policy()), at(30))
        .await
        .unwrap();
    assert_eq!(begun.who.duties, []);
    (begun, totp_secret, recovery)
}

async fn an_account_is_settled_before_it_is_used() {
    let kit = Kit::new().await;
    let made = account(&kit, "ann", "operator").await;
    assert!(made.must_change_password && !made.totp && made.status == "active");
    let (begun, totp_secret, recovery) = settle(&kit, "ann").await;
    assert!(begun.who.permissions.contains(&Permission::ManageServers));
    assert!(!begun.who.permissions.contains(&Permission::ManageAdmins));
    // The one-time password opens nothing any more, nor does the right one without a code.
    let old = sign_in(&kit, &credentials("ann", FIRST, None), at(31)).await;
    assert!(matches!(old, Err(LoginError::Refused)));
    let bare = sign_in(&kit, &credentials("ann", SECOND, None), at(31)).await;
    assert!(matches!(bare, Err(LoginError::CodeNeeded)));
    // A code is taken once: the one that set it up was used.
    let used = totp::code(&totp_secret, at(30));
    let replayed = sign_in(&kit, &credentials("ann", SECOND, Some(&used)), at(31)).await;
    assert!(matches!(replayed, Err(LoginError::Refused)));
    let fresh = totp::code(&totp_secret, at(60));
    sign_in(&kit, &credentials("ann", SECOND, Some(&fresh)), at(60)).await.unwrap();
    let again = sign_in(&kit, &credentials("ann", SECOND, Some(&fresh)), at(61)).await;
    assert!(matches!(again, Err(LoginError::Refused)));
    // So is a recovery code.
    let code = recovery[0].to_uppercase();
    sign_in(&kit, &credentials("ann", SECOND, Some(&code)), at(62)).await.unwrap();
    let again = sign_in(&kit, &credentials("ann", SECOND, Some(&code)), at(63)).await;
    assert!(matches!(again, Err(LoginError::Refused)));
    assert_eq!(kit.store.recovery_codes_left(made.id).await.unwrap(), 9);
    // What happened is on record, with who and from where, and without any secret.
    let audit = kit.store.list_audit(50).await.unwrap();
    let actions: BTreeSet<&str> = audit.iter().map(|entry| entry.action.as_str()).collect();
    assert!(
        ["create", "sign_in", "change_password", "enrol_totp"].iter().all(|action| actions.contains(action))
    );
    let own = audit.iter().find(|entry| entry.action == "enrol_totp").unwrap();
    assert_eq!(
        (own.actor.as_str(), own.address.as_deref(), own.agent.as_deref()),
        ("ann", Some("192.0.2.1"), Some("test/1"))
    );
    let text = serde_json::to_string(&audit).unwrap();
    assert!(!text.contains(FIRST) && !text.contains(SECOND) && !text.contains(&*totp::typed(&totp_secret)));
}

async fn guessing_locks_an_account_and_tells_nothing() {
    let kit = Kit::new().await;
    account(&kit, "ann", "admin").await;
    let wrong = credentials("ann", "not the password", None);
    for attempt in 1..=5 {
        let refused = sign_in(&kit, &wrong, at(attempt)).await.unwrap_err();
        assert!(matches!(refused, LoginError::Refused));
        let unknown =
            sign_in(&kit, &credentials("bob", "not the password", None), at(attempt)).await.unwrap_err();
        assert_eq!(refused.to_string(), unknown.to_string());
    }
    let ann = |view: &AdminView| view.username == "ann";
    let seen = async || kit.store.list_admins(None, 10).await.unwrap().into_iter().find(ann).unwrap();
    let locked = seen().await;
    assert_eq!((locked.status.as_str(), locked.locked_until), ("locked", Some(at(5 + 900))));
    // The right password opens nothing either, and looks like a wrong one.
    let right = credentials("ann", FIRST, None);
    assert!(matches!(sign_in(&kit, &right, at(904)).await, Err(LoginError::Refused)));
    // It goes by itself; more failures lock for twice as long.
    for attempt in 0..5 {
        assert!(sign_in(&kit, &wrong, at(910 + attempt)).await.is_err());
    }
    assert_eq!(seen().await.locked_until, Some(at(914 + 1800)));
    let kinds: Vec<String> = kit
        .store
        .list_security_events(&EventFilter { source: None, limit: 20 })
        .await
        .unwrap()
        .into_iter()
        .map(|event| event.kind)
        .collect();
    assert_eq!(kinds.iter().filter(|kind| *kind == "admin_locked_out").count(), 2);
    assert_eq!(kinds.iter().filter(|kind| *kind == "admin_login_failed").count(), 8);
    // An administrator forgives it.
    let which = WhichAdmin::Name("ann".into());
    kit.store.change_admin(&which, &AdminChange::Unlock, None, &root(), at(920)).await.unwrap();
    sign_in(&kit, &right, at(921)).await.unwrap();
    assert_eq!(seen().await.status, "active");
}

async fn a_stolen_session_guesses_no_password() {
    let kit = Kit::new().await;
    account(&kit, "ann", "admin").await;
    let (begun, ..) = settle(&kit, "ann").await;
    let guess = async |text: &str, time| {
        let (place, new) = ((&caller(), &policy()), secret("another long phrase"));
        kit.store.change_own_password(&begun.who, &secret(text), &new, place, at(time)).await
    };
    for attempt in 0..5 {
        let refused = guess("not the password", 100 + attempt).await;
        assert!(matches!(refused, Err(OwnError::Refused)), "{refused:?}");
    }
    // From then on the right one is as good as a wrong one, and no try counts.
    for _ in 0..3 {
        assert!(matches!(guess(SECOND, 105).await, Err(OwnError::Refused)));
    }
    let account = kit.store.admin(begun.who.admin).await.unwrap().unwrap();
    assert_eq!((account.status.as_str(), account.locked_until), ("locked", Some(at(104 + 900))));
    guess(SECOND, 104 + 900).await.unwrap();
}

async fn suspended_is_not_locked() {
    let kit = Kit::new().await;
    account(&kit, "root", "admin").await;
    let ann = account(&kit, "ann", "viewer").await;
    let begun = sign_in(&kit, &credentials("ann", FIRST, None), at(1)).await.unwrap();
    let which = WhichAdmin::Id(ann.id);
    let suspend = AdminChange::Suspend("on leave".into());
    let (view, ended) = kit.store.change_admin(&which, &suspend, Some(1), &root(), at(2)).await.unwrap();
    assert_eq!((view.status.as_str(), view.version, ended), ("suspended", 2, vec![begun.who.session]));
    let gone = kit.store.signed_in(begun.who.session, &caller(), &policy(), at(3)).await;
    assert!(matches!(gone, Err(SessionRefused::Ended)));
    // Who knows the password is told why; who does not is told nothing.
    let told = sign_in(&kit, &credentials("ann", FIRST, None), at(3)).await;
    assert!(matches!(told, Err(LoginError::Suspended(why)) if why == "on leave"));
    for _ in 0..6 {
        let refused = sign_in(&kit, &credentials("ann", "not the password", None), at(4)).await;
        assert!(matches!(refused, Err(LoginError::Refused)));
    }
    assert!(matches!(sign_in(&kit, &credentials("ann", FIRST, None), at(5)).await, Err(LoginError::Refused)));
    let stale = kit.store.change_admin(&which, &AdminChange::Activate, Some(1), &root(), at(6)).await;
    assert!(matches!(stale, Err(AdminError::Changed(2))));
    kit.store.change_admin(&which, &AdminChange::Activate, Some(2), &root(), at(6)).await.unwrap();
    sign_in(&kit, &credentials("ann", FIRST, None), at(7)).await.unwrap();
    // A one-time password has its time.
    let late = sign_in(&kit, &credentials("ann", FIRST, None), at(3600)).await;
    assert!(matches!(late, Err(LoginError::PasswordExpired)));
}

async fn somebody_can_always_manage_accounts() {
    let kit = Kit::new().await;
    let only = account(&kit, "root", "admin").await;
    account(&kit, "ann", "operator").await;
    let which = WhichAdmin::Id(only.id);
    for change in [AdminChange::Suspend("x".into()), AdminChange::Roles(roles(&["viewer"]))] {
        let refused = kit.store.change_admin(&which, &change, None, &root(), at(1)).await;
        assert!(matches!(refused, Err(AdminError::LastOne)));
    }
    let promote = AdminChange::Roles(roles(&["operator", "admin"]));
    kit.store.change_admin(&WhichAdmin::Name("ann".into()), &promote, None, &root(), at(2)).await.unwrap();
    kit.store.change_admin(&which, &AdminChange::Suspend("x".into()), None, &root(), at(3)).await.unwrap();
    let taken = NewAdmin {
        username: "bob".into(),
        email: Some("ann@example.org".into()),
        full_name: String::new(),
        roles: roles(&["viewer"]),
        password: OneTimePassword { text: secret(FIRST), until: at(9) },
    };
    assert!(matches!(kit.store.create_admin(&taken, &root(), at(4)).await, Err(AdminError::Exists)));
    let with = |roles_of: BTreeSet<String>, username: &str, email: Option<&str>| NewAdmin {
        roles: roles_of,
        username: username.into(),
        email: email.map(str::to_owned),
        ..taken.clone()
    };
    let none = with(roles(&["none"]), "bob", None);
    assert!(matches!(kit.store.create_admin(&none, &root(), at(4)).await, Err(AdminError::NoRole(_))));
    for (name, email) in [
        ("Bob", None),
        ("b b", None),
        ("'; DROP TABLE admins; --", None),
        ("bob", Some("nowhere")),
        ("bob", Some("a@b\n.c")),
    ] {
        let refused = kit.store.create_admin(&with(roles(&["viewer"]), name, email), &root(), at(4)).await;
        assert!(matches!(refused, Err(AdminError::Invalid(_))), "{name} {email:?}");
    }
}

async fn sessions_end_in_every_way() {
    let kit = Kit::new().await;
    let ann = account(&kit, "ann", "admin").await;
    let signed = async |begun: &Begun, time| {
        kit.store.signed_in(begun.who.session, &caller(), &policy(), at(time)).await
    };
    let login = async |time| sign_in(&kit, &credentials("ann", FIRST, None), at(time)).await.unwrap();
    // By itself when nobody uses it, and in any case.
    let idle = login(0).await;
    assert!(signed(&idle, 1799).await.is_ok());
    assert!(signed(&idle, 1799 + 1799).await.is_ok(), "it was used");
    assert!(matches!(signed(&idle, 1799 + 1799 + 1800).await, Err(SessionRefused::Ended)));
    let over = LogoutReason::Expired;
    assert!(kit.store.end_admin_session(idle.who.session, None, over, &root(), at(6000)).await.unwrap());
    let begun = login(10).await;
    assert_eq!(begun.expires, at(10 + 12 * 3600));
    // By its owner, and not by somebody else.
    let other = account(&kit, "bob", "viewer").await;
    let end = async |owner| {
        let reason = LogoutReason::UserInitiated;
        kit.store.end_admin_session(begun.who.session, owner, reason, &root(), at(11)).await.unwrap()
    };
    assert!(!end(Some(other.id)).await && end(Some(ann.id)).await && !end(Some(ann.id)).await);
    assert!(matches!(signed(&begun, 12).await, Err(SessionRefused::Ended)));
    // Another replica knows at once.
    let replica = kit.replica().await;
    let there = replica.signed_in(begun.who.session, &caller(), &policy(), at(12)).await;
    assert!(matches!(there, Err(SessionRefused::Ended)));
    // From another country, or with another program.
    for (agent, country) in [("test/1", Some("BR")), ("other/1", Some("SE")), ("other/1", None)] {
        let begun = login(20).await;
        let elsewhere = Caller::new("198.51.100.1".parse().unwrap(), agent, country.map(Into::into));
        let refused = kit.store.signed_in(begun.who.session, &elsewhere, &policy(), at(21)).await;
        assert!(matches!(refused, Err(SessionRefused::Suspicious)), "{agent} {country:?}");
        assert!(matches!(signed(&begun, 22).await, Err(SessionRefused::Ended)));
    }
    // Another address of the same country is no reason.
    let begun = login(30).await;
    let moved = Caller::new("198.51.100.1".parse().unwrap(), "test/1", Some("SE".into()));
    assert!(kit.store.signed_in(begun.who.session, &moved, &policy(), at(31)).await.is_ok());
    let listed = kit.store.list_admin_sessions(Some(ann.id), None, &policy(), at(31), 10).await.unwrap();
    assert_eq!(listed.iter().map(|view| view.id).collect::<Vec<_>>(), [begun.who.session]);
}

async fn a_refresh_token_is_used_once() {
    let kit = Kit::new().await;
    account(&kit, "ann", "admin").await;
    let begun = sign_in(&kit, &credentials("ann", FIRST, None), at(0)).await.unwrap();
    let renew = async |secret: &horizon_model::Secret, time| {
        kit.store.renew_admin_session(begun.who.session, secret, &caller(), &policy(), at(time)).await
    };
    let wrong = renew(&horizon_model::Secret::new([1; 32]), 1).await;
    assert!(matches!(wrong, Err(SessionRefused::Wrong)));
    let second = renew(&begun.secret, 2).await.unwrap();
    assert_eq!(second.who.session, begun.who.session);
    let third = renew(&second.secret, 3).await.unwrap();
    // One that was replaced is in two hands: nobody is signed in any more.
    assert!(matches!(renew(&second.secret, 4).await, Err(SessionRefused::Ended)));
    assert!(matches!(renew(&third.secret, 5).await, Err(SessionRefused::Ended)));
    let events = kit.store.list_security_events(&EventFilter { source: None, limit: 5 }).await.unwrap();
    assert_eq!(events[0].kind, "admin_token_reused");
}

async fn a_changed_password_ends_every_other_session() {
    let kit = Kit::new().await;
    account(&kit, "ann", "admin").await;
    let (first, second) = (
        sign_in(&kit, &credentials("ann", FIRST, None), at(0)).await.unwrap(),
        sign_in(&kit, &credentials("ann", FIRST, None), at(1)).await.unwrap(),
    );
    let change = async |old: &str, new: &str| {
        let place = (&caller(), &policy());
        kit.store.change_own_password(&first.who, &secret(old), &secret(new), place, at(2)).await
    };
    assert!(matches!(change("not the password", SECOND).await, Err(OwnError::Refused)));
    assert!(matches!(change(FIRST, FIRST).await, Err(OwnError::Same)));
    assert!(matches!(change(FIRST, "short").await, Err(OwnError::Password(_))));
    let (begun, ended) = change(FIRST, SECOND).await.unwrap();
    assert_eq!(BTreeSet::from_iter(ended), BTreeSet::from([first.who.session, second.who.session]));
    assert_ne!(begun.who.session, first.who.session);
    assert!(
        matches!(change(SECOND, FIRST).await, Err(OwnError::Ended)),
        "in the name of a session that has ended"
    );
}

async fn roles_are_those_of_the_program_and_ones_own() {
    let kit = Kit::new().await;
    account(&kit, "root", "admin").await;
    let built_in = kit.store.list_roles().await.unwrap();
    let names: Vec<&str> = built_in.iter().map(|role| role.name.as_str()).collect();
    assert_eq!(names, ["admin", "auditor", "operator", "viewer"]);
    for role in Role::ALL {
        let stored = built_in.iter().find(|stored| stored.name == role.as_str()).unwrap();
        let wanted: BTreeSet<String> = role.permissions().iter().map(ToString::to_string).collect();
        assert_eq!(BTreeSet::from_iter(stored.permissions.clone()), wanted);
    }
    let own = |name: &str, permissions: &[&str]| RoleView {
        name: name.into(),
        description: "Approves.".into(),
        built_in: false,
        permissions: permissions.iter().map(|&p| p.to_owned()).collect(),
    };
    let put = async |role: RoleView| kit.store.put_role(&role, &root(), at(1)).await;
    assert_eq!(put(own("approver", &["approve_identity"])).await.unwrap(), None);
    assert!(put(own("approver", &["approve_identity", "read_resources"])).await.unwrap().is_some());
    assert!(put(own("viewer", &["manage_admins"])).await.is_err(), "one that comes with the program");
    assert!(put(own("god", &["everything"])).await.is_err());
    account(&kit, "ann", "approver").await;
    let begun = sign_in(&kit, &credentials("ann", FIRST, None), at(2)).await.unwrap();
    assert_eq!(begun.who.permissions, [Permission::ApproveIdentity, Permission::ReadResources].into());
    // A restart keeps the organisation's own.
    kit.store.ensure_roles(at(3)).await.unwrap();
    assert_eq!(kit.store.list_roles().await.unwrap().len(), 5);
}

async fn a_request_is_carried_out_once() {
    let kit = Kit::new().await;
    let request = IdempotentRequest { owner: "ann".into(), key: "k".into(), digest: [1; 32] };
    let other = IdempotentRequest { digest: [2; 32], ..request.clone() };
    let claim = async |request: &IdempotentRequest, time| {
        kit.store.claim_idempotency(request, at(time)).await.unwrap()
    };
    assert_eq!(claim(&request, 0).await, Repeated::New);
    assert_eq!(claim(&request, 1).await, Repeated::UnderWay);
    assert_eq!(claim(&other, 1).await, Repeated::Other);
    // One that broke off is free again after a while, one that failed at once.
    assert_eq!(claim(&request, 121).await, Repeated::New);
    kit.store.settle_idempotency(&request, None, at(122)).await.unwrap();
    assert_eq!(claim(&request, 123).await, Repeated::New);
    kit.store.settle_idempotency(&request, Some((201, b"a secret answer")), at(124)).await.unwrap();
    let answered = Repeated::Answered(201, Zeroizing::new(b"a secret answer".to_vec()));
    assert_eq!(claim(&request, 125).await, answered);
    assert_eq!(claim(&other, 125).await, Repeated::Other);
    let elsewhere = IdempotentRequest { owner: "bob".into(), ..request.clone() };
    assert_eq!(claim(&elsewhere, 125).await, Repeated::New);
    assert_eq!(claim(&request, 124 + 24 * 3600 + 1).await, Repeated::New, "after a day");
}

async fn many_at_once_get_one_answer() {
    let kit = Kit::new().await;
    let (a, b) = (kit.store.clone(), kit.replica().await);
    let request = IdempotentRequest { owner: "ann".into(), key: "k".into(), digest: [1; 32] };
    let (one, two) = tokio::join!(a.claim_idempotency(&request, at(0)), b.claim_idempotency(&request, at(0)));
    let mut claimed = [one.unwrap(), two.unwrap()];
    claimed.sort_by_key(|repeated| *repeated != Repeated::New);
    assert_eq!(claimed, [Repeated::New, Repeated::UnderWay]);
    // Replicas that start together agree on one key of tokens.
    let (one, two) = tokio::join!(a.token_keys(at(0)), b.token_keys(at(0)));
    assert_eq!(one.unwrap()[0].id, two.unwrap()[0].id);
    // One code for two who sign in at the same moment.
    account(&kit, "ann", "admin").await;
    let (_, secret_of, _) = settle(&kit, "ann").await;
    let code = totp::code(&secret_of, at(90));
    let given = credentials("ann", SECOND, Some(&code));
    let (who, how) = (caller(), policy());
    let (one, two) =
        tokio::join!(a.sign_in(&given, &who, &how, at(90)), b.sign_in(&given, &who, &how, at(90)));
    assert_eq!(u8::from(one.is_ok()) + u8::from(two.is_ok()), 1);
}

async fn upkeep_forgets_what_is_over() {
    let kit = Kit::new().await;
    account(&kit, "ann", "admin").await;
    let begun = sign_in(&kit, &credentials("ann", FIRST, None), at(0)).await.unwrap();
    kit.store.token_keys(at(0)).await.unwrap();
    kit.store.blacklist_token(uuid::Uuid::from_u128(1), at(10)).await.unwrap();
    assert!(kit.store.is_blacklisted(uuid::Uuid::from_u128(1)).await.unwrap());
    kit.store.maintain(at(14 * 3600), &Default::default()).await.unwrap();
    assert!(!kit.store.is_blacklisted(uuid::Uuid::from_u128(1)).await.unwrap());
    let refused = kit.store.signed_in(begun.who.session, &caller(), &policy(), at(14 * 3600)).await;
    assert!(matches!(refused, Err(SessionRefused::Ended)));
    let year = 366 * 24 * 3600;
    let done = kit.store.maintain(at(14 * 3600 + year), &Default::default()).await.unwrap();
    assert!(done.deleted >= 2, "the session and the key of tokens: {done:?}");
}

async fn what_holds_for_accounts_holds_at_once_for_sessions_that_were_begun_before() {
    let kit = Kit::new().await;
    let ann = account(&kit, "ann", "admin").await;
    let begun = sign_in(&kit, &credentials("ann", FIRST, None), at(0)).await.unwrap();
    let seconds = std::time::Duration::from_secs;
    let under = async |policy: AccountPolicy, time| {
        kit.store.signed_in(begun.who.session, &caller(), &policy, at(time)).await
    };
    assert!(under(policy(), 100).await.is_ok());
    let shorter = AccountPolicy { absolute: seconds(90), ..policy() };
    assert!(matches!(under(shorter, 100).await, Err(SessionRefused::Ended)));
    let restless = AccountPolicy { idle: seconds(10), ..policy() };
    assert!(matches!(under(restless, 200).await, Err(SessionRefused::Ended)));
    for (held, listed) in [(policy(), 1), (shorter, 0), (restless, 0)] {
        let found = kit.store.list_admin_sessions(Some(ann.id), None, &held, at(200), 10).await.unwrap();
        assert_eq!(found.len(), listed);
    }
    // Nobody is asked for codes where none are required, and everybody is again where they are.
    let lenient = AccountPolicy { require_totp: false, ..policy() };
    assert_eq!(under(lenient, 210).await.unwrap().duties, [Duty::ChangePassword]);
    assert_eq!(under(policy(), 210).await.unwrap().duties, [Duty::ChangePassword, Duty::EnrolTotp]);
    // So many sessions at most: the one that was used longest ago ends for another.
    let few = AccountPolicy { sessions: 2, ..policy() };
    let mut open = vec![begun.who.session];
    for time in [300, 301] {
        let given = credentials("ann", FIRST, None);
        open.push(kit.store.sign_in(&given, &caller(), &few, at(time)).await.unwrap().who.session);
    }
    let first = kit.store.list_admin_sessions(None, None, &few, at(302), 1).await.unwrap();
    let place = AdminSessionPlace { login: first[0].login_at.as_millisecond(), session: first[0].id };
    let second = kit.store.list_admin_sessions(None, Some(place), &few, at(302), 5).await.unwrap();
    let listed: Vec<_> = first.iter().chain(&second).map(|view| view.id).collect();
    assert_eq!(listed, [open[2], open[1]], "page by page, the newest first");
    assert_eq!(place.to_string().parse(), Ok(place));
    assert!("".parse::<AdminSessionPlace>().is_err() && "1 x".parse::<AdminSessionPlace>().is_err());
    // One wrong password locks, where one does.
    let strict = AccountPolicy { threshold: 1, lockout: seconds(60), ..policy() };
    let wrong = credentials("ann", "not the password", None);
    assert!(kit.store.sign_in(&wrong, &caller(), &strict, at(310)).await.is_err());
    let right = credentials("ann", FIRST, None);
    assert!(kit.store.sign_in(&right, &caller(), &strict, at(369)).await.is_err());
    assert!(kit.store.sign_in(&right, &caller(), &strict, at(371)).await.is_ok());
}

conformance!(
    what_holds_for_accounts_holds_at_once_for_sessions_that_were_begun_before,
    an_account_is_settled_before_it_is_used,
    guessing_locks_an_account_and_tells_nothing,
    a_stolen_session_guesses_no_password,
    suspended_is_not_locked,
    somebody_can_always_manage_accounts,
    sessions_end_in_every_way,
    a_refresh_token_is_used_once,
    a_changed_password_ends_every_other_session,
    roles_are_those_of_the_program_and_ones_own,
    a_request_is_carried_out_once,
    many_at_once_get_one_answer,
    upkeep_forgets_what_is_over,
);
