//! What would change, and whom it would affect, if the controller read other files. Nothing is done.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use axum::{Json, extract::State};
use horizon_controller_core::{Desired, File, Index, PruneLimit, Wish, everything, plan, preview};
use horizon_crds::parse;

use super::{
    Api, ApiError,
    compare::{LiveSession, compare},
    model::{Diff, DiffRequest, FileText},
    server::Body,
};

pub(super) async fn handle(
    State(api): State<Arc<Api>>,
    Body(request): Body<DiffRequest>,
) -> Result<Json<Diff>, ApiError> {
    let index = api.engine.index();
    let live = api.store.live_sessions().await;
    let live = live.map_err(|error| ApiError::internal("list the live sessions", error))?;
    let live: Vec<_> = live.into_iter().map(|(id, user, server)| LiveSession { id, user, server }).collect();
    let limit = PruneLimit { percent: api.config.prune_limit_percent, ..PruneLimit::default() };
    let compared = tokio::task::spawn_blocking(move || diff(&index, &request.files, limit, &live));
    compared.await.map(Json).map_err(|error| ApiError::internal("compare the files", error))
}

/// Compares what is in force with what `files` declare.
fn diff(index: &Index, files: &[FileText], limit: PruneLimit, live: &[LiveSession]) -> Diff {
    let mut desired = Desired::new();
    for file in files {
        desired.set_file(
            &Arc::from(file.path.as_str()),
            Some(File::from(parse(&file.path, file.text.as_bytes()))),
        );
    }
    desired.set_complete(true);
    let wish = Wish { desired: &desired, limit, recent: &BTreeMap::new(), confirmed: &BTreeSet::new() };
    let plan = plan(index, wish, &everything(index, &desired));
    let unreadable = desired.files().flat_map(|(_, file)| file.problems.iter());
    let problems = unreadable.chain(plan.rejected.values().flatten()).map(ToString::to_string).collect();
    Diff { problems, ..compare(index, &preview(index, &plan), &plan, live) }
}

#[cfg(test)]
mod tests {
    use horizon_controller_core::{Origin, Stored};
    use horizon_model::SessionId;
    use jiff::Timestamp;
    use uuid::Uuid;

    use super::*;
    use crate::api::model::{Action, Effect};

    const HEAD: &str = "apiVersion = \"horizon.dev/v1alpha1\"\n";

    fn files(list: &[(&str, &str)]) -> Vec<FileText> {
        list.iter()
            .map(|(path, text)| FileText { path: (*path).into(), text: format!("{HEAD}{text}") })
            .collect()
    }

    fn in_force(files: &[FileText]) -> Index {
        let all = files.iter().flat_map(|file| {
            let parsed = parse(&file.path, file.text.as_bytes());
            assert_eq!(parsed.problems, []);
            parsed.resources.into_iter().map(|(resource, _)| Stored {
                resource: Arc::new(resource),
                uid: Uuid::now_v7(),
                generation: 1,
                origin: Origin::File(file.path.as_str().into()),
                number: None,
                created_at: Timestamp::UNIX_EPOCH,
            })
        });
        Index::new(all)
    }

    const SERVER: (&str, &str) = ("home.toml", "kind = \"Server\"\nmetadata.name = \"home\"\n[spec]\n");
    const USER: (&str, &str) =
        ("ann.toml", "kind = \"User\"\nmetadata.name = \"ann\"\n[spec]\ngroups = [\"family\"]\n");
    const POLICY: &str = "kind = \"AccessPolicy\"\nmetadata.name = \"all\"\n[spec]\nsubjects.groups = [\"family\"]\n\
                          servers = [\"home\"]\ncapabilities = [\"vpn\"]\ndestinations = [{ cidr = \"0.0.0.0/0\" }]\n";

    #[test]
    fn nothing_changes_nothing() {
        let same = files(&[SERVER, USER, ("p.toml", POLICY)]);
        let answer = diff(&in_force(&same), &same, PruneLimit::default(), &[]);
        assert_eq!(answer, Diff::default());
    }

    #[test]
    fn who_loses_access_is_told() {
        let index = in_force(&files(&[SERVER, USER, ("p.toml", POLICY)]));
        let live = LiveSession {
            id: SessionId(Uuid::nil()),
            user: index.user("default", "ann").unwrap().0.uid,
            server: index.server_named("default", "home").unwrap(),
        };
        let answer = diff(&index, &files(&[SERVER, USER]), PruneLimit::default(), &[live]);
        assert_eq!(answer.resources.iter().map(|r| r.action).collect::<Vec<_>>(), [Action::Remove]);
        assert_eq!(answer.access.iter().map(|a| a.effect).collect::<Vec<_>>(), [Effect::Lost]);
        assert!(answer.sessions[0].ends);
    }

    #[test]
    fn broken_files_are_told_and_change_nothing() {
        let index = in_force(&files(&[SERVER]));
        let answer = diff(&index, &files(&[("home.toml", "kind = \"Sever\"\n")]), PruneLimit::default(), &[]);
        assert!(answer.problems.iter().any(|p| p.contains("did you mean \"Server\"?")), "{answer:#?}");
        assert_eq!(answer.resources, []);
    }
}
