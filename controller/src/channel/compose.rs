//! An appliance's state: the entries that follow from resources, and one for each session that may go on.

use std::collections::HashSet;

use horizon_controller_core::{GrantFacts, Index, Purpose, ServerStanding, base_state, grant, session_entry};
use horizon_model::{EntryBody, EntryId, ServerId, SessionId};
use horizon_wire::state::Entries;
use jiff::Timestamp;

use super::{Context, accept};
use crate::store::{SessionRow, StoreError};

/// A composed state.
pub(super) struct Composed {
    /// Its entries as bytes.
    pub(super) entries: Entries,
    /// How many bytes they are.
    pub(super) bytes: usize,
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
    if let Some((server, _)) = index.server_by_id(session.server)
        && accept::blocked_in(index, server.resource.namespace(), session.client)
    {
        return Err("the network that it was asked for from is blocked".to_owned());
    }
    let moved = session.addresses.iter().any(|(id, addresses)| {
        let ranges = granted.network(*id).map_or(&[][..], |network| &network.ranges);
        !ranges.is_empty()
            && addresses.iter().any(|address| !ranges.iter().any(|range| range.contains(address)))
    });
    if moved {
        return Err("the addresses of its network changed; connect again for a new one".to_owned());
    }
    session_entry(&granted, &session.facts())
        .ok_or_else(|| "nothing of what it was granted is left".to_owned())
}

/// Composes the state of a server as it should be now. `None` when that cannot be told: the server has not ended, and yet its
/// resource is not in force.
pub(super) async fn compose(context: &Context, server: ServerId) -> Result<Option<Composed>, StoreError> {
    let index = context.desired.index();
    let standing =
        context.store.server(server).await?.map_or(ServerStanding::Revoked, |record| record.standing());
    let mut sessions = HashSet::new();
    if standing == ServerStanding::Revoked {
        return Ok(Some(Composed { entries: Entries::default(), bytes: 0, sessions }));
    }
    let Some(mut state) = base_state(&index, server) else { return Ok(None) };
    let now = context.now();
    for session in context.store.sessions_of_server(server).await? {
        // Those that may not go on are ended by the keeper; here they are merely left out.
        if let Ok(entry) = judge(&index, standing, &session, now) {
            state.entries.insert(EntryId::session(session.id), entry);
            sessions.insert(session.id);
        }
    }
    let entries = Entries::encode(&state);
    let bytes = entries.iter().map(|(id, body)| id.as_str().len() + body.len()).sum();
    Ok(Some(Composed { entries, bytes, sessions }))
}
