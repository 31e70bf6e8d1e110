//! An appliance's state: the entries that follow from resources, and one for each session that may go on.

use std::collections::HashSet;

use horizon_controller_core::{
    GrantFacts, Index, Purpose, ServerStanding, base_state, grant, session_entry,
};
use horizon_model::{ApplianceState, EntryBody, EntryId, ServerId, SessionId};
use horizon_wire::state::Entries;
use jiff::Timestamp;

use super::Context;
use crate::store::{SessionRow, StoreError};

/// A composed state.
pub(super) struct Composed {
    /// Its entries as bytes.
    pub(super) entries: Entries,
    /// The sessions in it.
    pub(super) sessions: HashSet<SessionId>,
}

/// Whether a session may go on: its entry, or why not.
pub(super) fn judge(
    index: &Index,
    standing: ServerStanding,
    session: &SessionRow,
    now: Timestamp,
) -> Result<EntryBody, String> {
    let facts = GrantFacts { purpose: Purpose::LiveSession, server: standing, device: session.standing(now) };
    let granted = grant(index, facts, session.user, session.server).map_err(|denial| denial.to_string())?;
    session_entry(&granted, &session.facts()).ok_or_else(|| "nothing of what it was granted is left".to_owned())
}

/// Composes the state of a server as it should be now.
pub(super) async fn compose(context: &Context, server: ServerId) -> Result<Composed, StoreError> {
    let index = context.desired.index();
    let standing = context.store.server(server).await?.map_or(ServerStanding::Revoked, |record| record.standing());
    let mut state = base_state(&index, server).unwrap_or_else(ApplianceState::default);
    let mut sessions = HashSet::new();
    if standing == ServerStanding::Revoked {
        return Ok(Composed { entries: Entries::encode(&ApplianceState::default()), sessions });
    }
    let now = context.now();
    for session in context.store.sessions_of_server(server).await? {
        // Those that may not go on are ended by the keeper; here they are merely left out.
        if let Ok(entry) = judge(&index, standing, &session, now) {
            state.entries.insert(EntryId::session(session.id), entry);
            sessions.insert(session.id);
        }
    }
    Ok(Composed { entries: Entries::encode(&state), sessions })
}
