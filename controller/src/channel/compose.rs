//! An appliance's state: the entries that follow from resources, and one for each session that may go on.

use std::collections::HashSet;

use horizon_controller_core::{GrantFacts, Index, Purpose, ServerStanding, base_state, grant, session_entry};
use horizon_model::{EntryBody, EntryId, ServerId, SessionId};
use horizon_wire::{
    convert,
    state::{Entries, MAX_ENTRY_BYTES},
};
use jiff::Timestamp;

use super::{Context, accept};
use crate::store::{Revision, SessionRow, StoreError};

/// A composed state.
pub(super) struct Composed {
    /// Its entries as bytes.
    pub(super) entries: Entries,
    /// How many bytes they are.
    pub(super) bytes: usize,
    /// The sessions in it.
    pub(super) sessions: HashSet<SessionId>,
    /// The resources it was made of.
    pub(super) revision: Revision,
    /// Whether a new secret waits for the appliance, which it gets when it next attaches.
    pub(super) secret_due: bool,
    /// Sessions that may not go on, and why. Among them are those for which there is no room: an appliance that cannot be sent
    /// its state could not be told of any session's end either.
    pub(super) over: Vec<(SessionRow, String)>,
}

/// Why a session ends for which there is no room.
const NO_ROOM: &str = "the rules of all sessions of the server became more than its state can hold";

/// Whether a session may go on: its entry, or why not.
pub(super) fn judge(
    index: &Index,
    standing: ServerStanding,
    session: &SessionRow,
    now: Timestamp,
) -> Result<EntryBody, String> {
    let facts = GrantFacts {
        purpose: Purpose::LiveSession,
        server: standing,
        device: session.standing(now),
        traits: Some(&session.traits),
    };
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
    let (index, revision) = context.desired.in_force();
    let known = context.store.server_standing_and_secret(server).await?;
    let (standing, secret_due) = known.unwrap_or((ServerStanding::Revoked, false));
    let mut sessions = HashSet::new();
    if standing == ServerStanding::Revoked {
        let entries = Entries::default();
        return Ok(Some(Composed { entries, bytes: 0, sessions, revision, secret_due, over: Vec::new() }));
    }
    let Some(state) = base_state(&index, server) else { return Ok(None) };
    let base = Entries::encode(&state);
    let mut bytes = base.size();
    let (mut admitted, mut over) = (Vec::new(), Vec::new());
    let now = context.now();
    // The oldest come first, so that it is the newest for which there is no room.
    for session in context.store.sessions_of_server(server).await? {
        let entry = match judge(&index, standing, &session, now) {
            Ok(entry) => entry,
            Err(why) => {
                over.push((session, why));
                continue;
            }
        };
        let (id, body) = (EntryId::session(session.id), convert::encode_entry(&entry));
        let size = Entries::size_of(&id, &body);
        if body.len() > MAX_ENTRY_BYTES || bytes + size > context.settings.state_bytes {
            over.push((session, NO_ROOM.to_owned()));
            continue;
        }
        bytes += size;
        sessions.insert(session.id);
        admitted.push((id, body));
    }
    let base = base.iter().map(|(id, body)| (id.clone(), body.clone()));
    let entries = base.chain(admitted).collect();
    Ok(Some(Composed { entries, bytes, sessions, revision, secret_due, over }))
}
