//! Every route once: its method, its path, who may use it, and what it is about. The router, the document of the API and the
//! test of permissions follow from this table.

use axum::{
    Router,
    handler::Handler,
    http::Method,
    middleware,
    routing::{MethodFilter, MethodRouter, on},
};
use horizon_controller_core::account::Permission::{
    ApproveIdentity, ConfirmPrune, HandleEvents, ManageAdmins, ManageKeys, ManageSecurity, ManageServers,
    ManageSessions, ManageUsers, ReadAudit, ReadEvents, ReadResources, ReadSessions,
};

use super::{
    Rest, account, admins, doors,
    guard::{self, Access, Guarded},
    lists, openapi, stream,
};
use crate::api::{change, devices, issue, rotate, security};

/// One route.
pub(super) struct Route {
    pub(super) method: Method,
    pub(super) path: &'static str,
    /// The method and the path, as limits and figures name the route.
    pub(super) endpoint: &'static str,
    pub(super) access: Access,
    /// What it does, in a sentence.
    pub(super) summary: &'static str,
    /// The name of the schema of its body; empty where there is none.
    pub(super) takes: &'static str,
    /// The status and the name of the schema of its answer; empty for any JSON. `[A]` is a page of a list of `A`, `A|B` one or
    /// the other.
    pub(super) gives: (u16, &'static str),
    handler: MethodRouter<Rest>,
}

macro_rules! routes {
    ($($method:ident $path:literal, $access:expr, $takes:literal => $status:literal $gives:literal, $handler:expr, $summary:literal;)+) => {
        /// All of them.
        pub(super) fn all() -> Vec<Route> {
            vec![$(Route {
                method: Method::$method,
                path: $path,
                endpoint: concat!(stringify!($method), " ", $path),
                access: $access,
                summary: $summary,
                takes: $takes,
                gives: ($status, $gives),
                handler: method(MethodFilter::$method, $handler),
            }),+]
        }
    };
}

fn method<H: Handler<T, Rest>, T: 'static>(filter: MethodFilter, handler: H) -> MethodRouter<Rest> {
    on(filter, handler)
}

use Access::{Anyone, Device, DeviceOr, May, MayOne, Settled, SignedIn, Stranger};

routes! {
    GET "/v1/status", Anyone, "" => 200 "", lists::status, "Whether the controller can serve; how it does, for who may read resources.";
    GET "/v1/openapi.json", Anyone, "" => 200 "", openapi::serve, "This document.";
    GET "/v1/jwks.json", Anyone, "" => 200 "Jwks", account::jwks, "The public keys of tokens (RFC 7517).";

    POST "/v1/challenges", Stranger, "AskChallenge" => 200 "Challenge", doors::challenge, "A challenge, by which an appliance or a device proves its key.";
    POST "/v1/register", Stranger, "Register" => 200 "Registered", doors::register, "Registers an appliance with a registration token. Repeating it with the same key answers the same.";
    POST "/v1/auth", Stranger, "Authenticate" => 200 "DeviceTokens", doors::authenticate, "Enrols a device with a personal key, or signs it in again.";
    DELETE "/v1/auth", Device, "" => 204 "", doors::forget_token, "Gives a device's token back.";

    POST "/v1/admin/login", Stranger, "Login" => 200 "Tokens", account::login, "Signs an administrator in.";
    POST "/v1/admin/refresh", Stranger, "Refresh" => 200 "Tokens", account::refresh, "Renews a session. A refresh token is used once.";
    POST "/v1/admin/logout", SignedIn, "" => 204 "", account::logout, "Signs out: every token of the session is dead at once.";
    GET "/v1/admin/me", SignedIn, "" => 200 "Me", account::me, "Who is signed in, and what they may and must do.";
    POST "/v1/admin/password", SignedIn, "PasswordChange" => 200 "Tokens", account::change_password, "Changes one's own password. Every other session ends.";
    POST "/v1/admin/totp", SignedIn, "" => 201 "EnrolTotp", account::begin_totp, "Begins to set up one-time codes.";
    POST "/v1/admin/totp/confirm", SignedIn, "ConfirmTotp" => 200 "Tokens", account::confirm_totp, "Sets up one-time codes, and shows the recovery codes.";
    GET "/v1/admin/sessions", Settled, "" => 200 "[AdminSessionView]", account::own_sessions, "One's own sessions.";
    DELETE "/v1/admin/sessions/{session}", Settled, "" => 204 "", account::end_own_session, "Ends a session of one's own.";

    GET "/v1/admins", May(ManageAdmins), "" => 200 "[AdminView]", admins::list, "The accounts of administrators.";
    POST "/v1/admins", May(ManageAdmins), "MakeAdmin" => 201 "OneTime", admins::create, "Makes an account, with a one-time password.";
    GET "/v1/admins/{admin}", May(ManageAdmins), "" => 200 "AdminView", admins::one, "An account. Its ETag is its version.";
    PATCH "/v1/admins/{admin}", May(ManageAdmins), "ChangeAdmin" => 200 "AdminView", admins::change, "Changes an account. If-Match says which version.";
    POST "/v1/admins/{admin}/suspend", May(ManageAdmins), "Reason" => 200 "AdminView", admins::suspend, "Suspends an account, and ends its sessions.";
    POST "/v1/admins/{admin}/activate", May(ManageAdmins), "" => 200 "AdminView", admins::activate, "Lets a suspended account sign in again.";
    POST "/v1/admins/{admin}/unlock", May(ManageAdmins), "" => 200 "AdminView", admins::unlock, "Forgives failed attempts to sign in.";
    POST "/v1/admins/{admin}/reset-password", May(ManageAdmins), "" => 200 "OneTime", admins::new_password, "Gives an account another one-time password, and ends its sessions.";
    POST "/v1/admins/{admin}/reset-totp", May(ManageAdmins), "" => 200 "AdminView", admins::reset_totp, "Has an account set up one-time codes anew, and ends its sessions.";
    GET "/v1/admin-sessions", May(ManageAdmins), "" => 200 "[AdminSessionView]", admins::sessions, "The sessions of all administrators.";
    DELETE "/v1/admin-sessions/{session}", May(ManageAdmins), "" => 204 "", admins::end_session, "Ends a session of any administrator.";
    GET "/v1/roles", May(ManageAdmins), "" => 200 "[RoleView]", lists::roles, "The roles, and what they allow.";
    PUT "/v1/roles/{role}", May(ManageAdmins), "PutRole" => 200 "RoleView", admins::put_role, "Makes or changes a role of the organisation's own.";
    POST "/v1/token-keys/rotate", May(ManageAdmins), "RotateKeys" => 204 "", admins::rotate_keys, "Puts another key in the place of those that sign tokens.";

    GET "/v1/servers", DeviceOr(ReadResources), "" => 200 "[Server|ServerForDevice]", lists::servers, "Servers: for a device those that its user may use, for an administrator all.";
    GET "/v1/sessions", May(ReadSessions), "" => 200 "[SessionView]", lists::sessions, "Sessions, newest first.";
    POST "/v1/sessions/{session}/end", May(ManageSessions), "Reason" => 204 "", lists::end_session, "Ends a session.";
    GET "/v1/devices", May(ReadSessions), "" => 200 "[DeviceView]", lists::devices, "Enrolled devices, newest first.";
    GET "/v1/events", May(ReadEvents), "" => 200 "[SecurityEvent]", lists::events, "Security events, newest first.";
    POST "/v1/events/{id}/handling", May(HandleEvents), "Handling" => 200 "SecurityEvent", security::handle_event, "Marks a security event as handled.";
    GET "/v1/anomalies", May(ReadEvents), "" => 200 "[Anomaly]", lists::anomalies, "Anomalies, newest first.";
    POST "/v1/anomalies/{id}/feedback", May(HandleEvents), "Verdict" => 200 "Anomaly", security::judge_anomaly, "Says whether an anomaly was one, which its detector learns from.";
    GET "/v1/notifications", May(ReadEvents), "" => 200 "[Notification]", lists::notifications, "Notifications, newest first.";
    POST "/v1/notifications/{id}", May(HandleEvents), "Acting" => 200 "Notification", security::address_notification, "Marks a notification as read, and says what was done.";
    GET "/v1/blocks", May(ReadEvents), "" => 200 "[Block]", lists::blocks, "Blocked addresses and ranges.";
    POST "/v1/blocks", May(ManageSecurity), "BlockRequest" => 200 "Done", security::block, "Blocks an address or a range.";
    POST "/v1/unblocks", May(ManageSecurity), "UnblockRequest" => 200 "Done", security::unblock, "Lifts a block.";
    GET "/v1/flags", May(ReadEvents), "" => 200 "[Flag]", lists::flags, "Flagged servers and users.";
    POST "/v1/flags", May(ManageSecurity), "FlagRequest" => 200 "Done", security::flag, "Flags a server or a user.";
    POST "/v1/flag-clearings", May(ManageSecurity), "FlagRequest" => 200 "Done", security::clear_flag, "Clears a flag.";
    GET "/v1/tasks", May(ReadEvents), "" => 200 "[Task]", lists::tasks, "Scheduled tasks.";
    GET "/v1/services", May(ReadEvents), "" => 200 "[Service]", lists::services, "How the parts of the system do.";
    GET "/v1/reports", May(ReadEvents), "" => 200 "[Report]", lists::reports, "Reports, newest first.";
    GET "/v1/events/stream", Settled, "" => 200 "", stream::open, "Live changes as server-sent events, as far as one's permissions go. Last-Event-ID goes on where a stream broke off.";
    GET "/v1/audit", May(ReadAudit), "" => 200 "[AuditEntry]", lists::audit, "The audit trail, newest first.";
    POST "/v1/tokens", May(ManageServers), "TokenRequest" => 200 "Issued", issue::token, "Makes a registration token for a server.";
    POST "/v1/invitations", May(ManageUsers), "InvitationRequest" => 200 "Issued", issue::invitation, "Makes a personal key for a user.";
    GET "/v1/approvals", May(ReadResources), "" => 200 "[Approval]", lists::approvals, "Approvals.";
    POST "/v1/approvals", May(ApproveIdentity), "ApprovalRequest" => 200 "Recorded", change::approve, "Approves a changed identity of a server.";
    GET "/v1/revocations", May(ReadResources), "" => 200 "[Revocation]", lists::revocations, "Revocations.";
    POST "/v1/revocations", MayOne(&[ManageUsers, ManageServers]), "RevocationRequest" => 200 "Recorded", lists::revoke, "Revokes something for good: a personal key or a device takes manage_users, a server or a registration key manage_servers.";
    POST "/v1/prune-confirmations", May(ConfirmPrune), "" => 200 "Done", change::confirm_prune, "Lets go of resources that vanished and wait for a confirmation.";
    GET "/v1/devices/{id}", May(ReadSessions), "" => 200 "DeviceDetail", devices::one, "A device, with its history.";
    GET "/v1/devicedecisions", May(ReadResources), "" => 200 "[DeviceDecision]", lists::decisions, "Decisions about devices.";
    POST "/v1/devicedecisions", May(ManageUsers), "DeviceDecisionRequest" => 200 "Recorded", devices::decide, "Blocks, unblocks, suspects or forgets a device.";
    GET "/v1/keyrotations", May(ReadResources), "" => 200 "[KeyRotation]", lists::rotations, "Rotations of keys.";
    POST "/v1/keyrotations", May(ManageKeys), "RotationRequest" => 200 "Recorded", rotate::rotate, "Rotates keys.";
    GET "/v1/{kind}", May(ReadResources), "" => 200 "[Resource]", lists::list, "Resources of a kind: its plural, its name or its short name.";
    GET "/v1/{kind}/{name}", May(ReadResources), "" => 200 "Detail", lists::one, "A resource, with everything that is known of it.";
}

/// The router of the table.
pub(super) fn router(rest: Rest) -> Router {
    let mut router = Router::new();
    for Route { path, access, handler, endpoint, .. } in all() {
        let route = Guarded { rest: rest.clone(), access, endpoint };
        router = router.route(path, handler.route_layer(middleware::from_fn_with_state(route, guard::guard)));
    }
    router
        .fallback(guard::nothing)
        .method_not_allowed_fallback(guard::no_method)
        .layer(middleware::from_fn_with_state(rest.clone(), guard::gate))
        .with_state(rest)
}
