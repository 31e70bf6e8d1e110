//! `get`: resources and records in columns, JSON or YAML.

use std::io::Write;

use horizon_crds::{DEFAULT_NAMESPACE, KindName, Name};
use serde_json::{Value, json};

use super::{
    args::{Output, What},
    columns, records,
    table::Table,
    write_value,
};
use crate::api::{
    client::{Client, escape},
    model::List,
};

/// What `get` was asked.
pub(super) struct Question<'a> {
    pub(super) what: What,
    pub(super) name: Option<&'a str>,
    pub(super) namespace: Option<&'a Name>,
    pub(super) output: Output,
    pub(super) limit: u32,
    pub(super) now: jiff::Timestamp,
}

/// Answers the question.
pub(super) async fn get(client: &Client, question: &Question<'_>, out: &mut dyn Write) -> anyhow::Result<()> {
    let kinds: &[KindName] = match question.what {
        What::All => &KindName::ALL,
        What::Kind(kind) => &[kind],
        What::Sessions => return records::get(client, &records::SESSIONS, question, out).await,
        What::Devices => return records::get(client, &records::DEVICES, question, out).await,
        What::Events => return records::get(client, &records::EVENTS, question, out).await,
        What::Audit => return records::get(client, &records::AUDIT, question, out).await,
        What::Anomalies => return records::get(client, &records::ANOMALIES, question, out).await,
        What::Blocks => return records::get(client, &records::BLOCKS, question, out).await,
        What::Flags => return records::get(client, &records::FLAGS, question, out).await,
        What::Notifications => return records::get(client, &records::NOTIFICATIONS, question, out).await,
        What::Tasks => return records::get(client, &records::TASKS, question, out).await,
        What::Services => return records::get(client, &records::SERVICES, question, out).await,
        What::Reports => return records::get(client, &records::REPORTS, question, out).await,
    };
    if let Some(name) = question.name {
        let [kind] = kinds else {
            anyhow::bail!("a name needs a kind: `get server {name}` instead of `get all {name}`")
        };
        let object = one(client, *kind, question.namespace.map_or(DEFAULT_NAMESPACE, |n| n), name).await?;
        return match question.output {
            Output::Table | Output::Wide => Ok(objects(*kind, &[object], question, false).write(out)?),
            output => write_value(out, &object, output),
        };
    }
    let mut all = Vec::new();
    for kind in kinds {
        all.push((*kind, list(client, *kind, question.namespace).await?));
    }
    match question.output {
        Output::Table | Output::Wide => {
            all.retain(|(_, items)| !items.is_empty());
            if all.is_empty() {
                writeln!(
                    out,
                    "There is nothing{}.",
                    question.namespace.map(|n| format!(" in namespace {n}")).unwrap_or_default()
                )?;
            }
            for (i, (kind, items)) in all.iter().enumerate() {
                if i > 0 {
                    writeln!(out)?;
                }
                objects(*kind, items, question, kinds.len() > 1).write(out)?;
            }
            Ok(())
        }
        output => {
            let items: Vec<Value> = all.into_iter().flat_map(|(_, items)| items).collect();
            write_value(out, &json!({ "apiVersion": "v1", "kind": "List", "items": items }), output)
        }
    }
}

async fn one(client: &Client, kind: KindName, namespace: &str, name: &str) -> anyhow::Result<Value> {
    let path = format!("/v1/{}/{}?namespace={}", kind.plural(), escape(name), escape(namespace));
    let mut detail: Value = client.get(&path).await?;
    Ok(detail["object"].take())
}

async fn list(client: &Client, kind: KindName, namespace: Option<&Name>) -> anyhow::Result<Vec<Value>> {
    let query = namespace.map(|n| format!("?namespace={}", escape(n))).unwrap_or_default();
    let list: List<Value> = client.get(&format!("/v1/{}{query}", kind.plural())).await?;
    Ok(list.items)
}

/// The columns the schema declares for a kind, under its namespace where there are several.
fn objects(kind: KindName, items: &[Value], question: &Question<'_>, with_kind: bool) -> Table {
    let definition = horizon_crds::crd(kind);
    let declared =
        definition["spec"]["versions"][0]["additionalPrinterColumns"].as_array().cloned().unwrap_or_default();
    let wide = question.output == Output::Wide;
    let shown: Vec<&Value> =
        declared.iter().filter(|c| wide || c["priority"].as_i64().unwrap_or(0) == 0).collect();
    let namespaced = items.iter().any(|item| item["metadata"]["namespace"] != DEFAULT_NAMESPACE);

    let text = |column: &Value, key: &str| column[key].as_str().unwrap_or_default().to_owned();
    let mut headings: Vec<String> = Vec::new();
    if namespaced {
        headings.push("Namespace".into());
    }
    headings.push("Name".into());
    headings.extend(shown.iter().map(|column| text(column, "name")));
    let mut table = Table::new(headings);
    for item in items {
        let mut cells = Vec::new();
        if namespaced {
            cells.push(columns::find(item, ".metadata.namespace"));
        }
        let name = columns::find(item, ".metadata.name");
        cells.push(if with_kind { format!("{}/{name}", kind.as_str().to_lowercase()) } else { name });
        cells.extend(shown.iter().map(|column| {
            let cell = columns::find(item, &text(column, "jsonPath"));
            if text(column, "type") == "date" { columns::age(&cell, question.now) } else { cell }
        }));
        table.row(cells);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(namespace: &str) -> Value {
        json!({
            "metadata": { "name": "home", "namespace": namespace, "creationTimestamp": "2026-01-01T00:00:00Z" },
            "spec": { "location": "at home" },
            "status": {
                "phase": "active",
                "publicAddress": "192.0.2.7",
                "location": "at home",
                "version": "0.1.0",
                "conditions": [{ "type": "Online", "status": "True" }, { "type": "Available", "status": "False" }],
            },
        })
    }

    fn table(items: &[Value], output: Output, with_kind: bool) -> String {
        let now = "2026-01-03T00:00:00Z".parse().unwrap();
        let question = Question { what: What::All, name: None, namespace: None, output, limit: 1, now };
        let mut out = Vec::new();
        objects(KindName::Server, items, &question, with_kind).write(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_server_in_columns() {
        assert_eq!(
            table(&[server("default")], Output::Table, false),
            "NAME   PHASE    ONLINE   AVAILABLE   ADDRESS     LOCATION   AGE\n\
             home   active   True     False       192.0.2.7   at home    2d\n"
        );
    }

    #[test]
    fn more_columns_when_wide_and_a_namespace_when_there_are_several() {
        assert_eq!(
            table(&[server("lab")], Output::Wide, true),
            "NAMESPACE   NAME          PHASE    ONLINE   AVAILABLE   ADDRESS     LOCATION   VERSION   ACCEPTED   AGE\n\
             lab         server/home   active   True     False       192.0.2.7   at home    0.1.0     -          2d\n"
        );
    }
}
