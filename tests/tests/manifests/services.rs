//! Redis and Postgres, set up by the files that manifests/ has for them.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use horizon_services::{Postgres, PostgresOptions, until};

use crate::tools::{argument, manifests, output, run};

/// A process that ends with its test, whatever ends that.
struct Guarded(Child);

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A certificate authority and certificates by the compose file's own script.
fn certificates(folder: &Path) -> PathBuf {
    let script = argument("compose/certificates.sh");
    let folder = folder.display().to_string();
    run(Path::new("bash"), &[&script, &folder, ""], "");
    let made = PathBuf::from(&folder).join("postgres.crt");
    let first = fs::read(&made).unwrap();
    run(Path::new("bash"), &[&script, &folder, ""], "");
    assert_eq!(fs::read(&made).unwrap(), first, "they are made once");
    assert!(!PathBuf::from(&folder).join("ca.key").exists());
    PathBuf::from(folder)
}

#[test]
fn redis_starts_as_configured_and_keeps_to_its_limits() {
    let folder = tempfile::tempdir().unwrap();
    let tls = certificates(folder.path());
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    // The script with which the compose file starts it, with this machine's paths.
    let script = fs::read_to_string(manifests("compose/redis.sh")).unwrap();
    let acl = folder.path().join("users.acl").display().to_string();
    let config = argument("examples/redis/redis.conf");
    let at = |name: &str| tls.join(name).display().to_string();
    let overrides = format!(
        "--tls-port {port} --bind 127.0.0.1 --aclfile {acl} --tls-cert-file {} --tls-key-file {} --tls-ca-cert-file {}",
        at("tls.crt"),
        at("tls.key"),
        at("ca.crt")
    );
    let script = script.replace("/acl/users.acl", &acl).replace(
        "exec redis-server /etc/redis/redis.conf",
        &format!("exec redis-server {config} {overrides}"),
    );
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", "sh", "-c", &script]).env("REDIS_PASSWORD", "a-password");
    command.current_dir(folder.path()).stdin(Stdio::null()).stdout(Stdio::null());
    let _redis = Guarded(command.spawn().unwrap());

    let port = port.to_string();
    let connection =
        ["--user", "horizon", "--tls", "--cacert", &at("ca.crt"), "-h", "127.0.0.1", "-p", &port]
            .map(str::to_owned);
    let ask = |words: &[&str]| {
        let all: Vec<&str> = connection.iter().map(String::as_str).chain(words.iter().copied()).collect();
        let (_, stdout, stderr) =
            output(Path::new("redis-cli"), &all, "", &[("REDISCLI_AUTH", "a-password")]);
        format!("{stdout}{stderr}").trim().to_owned()
    };
    until("Redis to answer", || (ask(&["PING"]) == "PONG").then_some(())).unwrap();

    assert_eq!(ask(&["SET", "cache:a:1", "1", "EX", "60"]), "OK");
    assert_eq!(ask(&["EVAL", "return redis.call('INCR', KEYS[1])", "1", "cache:a:1"]), "2");
    for beyond in [
        &["SET", "elsewhere", "1"][..],
        &["FLUSHALL"],
        &["CONFIG", "SET", "maxmemory", "0"],
        &["KEYS", "*"],
        &["PUBLISH", "elsewhere", "1"],
        &["ACL", "LIST"],
    ] {
        let said = ask(beyond);
        assert!(said.starts_with("NOPERM"), "{beyond:?}: {said}");
    }
    let persistence = ask(&["INFO", "persistence"]);
    assert!(persistence.contains("aof_enabled:1"), "{persistence}");
    assert!(folder.path().join("appendonlydir").is_dir());
    let memory = ask(&["INFO", "memory"]);
    assert!(memory.contains("maxmemory:268435456"), "{memory}");
    assert!(memory.contains("maxmemory_policy:volatile-ttl"), "{memory}");
    let written = fs::read_to_string(manifests("examples/redis/redis.conf")).unwrap();
    assert!(written.contains("\nappendfsync everysec\n"));
    // Without TLS, or without the password, nobody gets anywhere.
    let (_, plain, error) =
        output(Path::new("redis-cli"), &["-h", "127.0.0.1", "-p", &port, "PING"], "", &[]);
    assert!(!format!("{plain}{error}").contains("PONG"));
    let ca = at("ca.crt");
    let stranger = ["--tls", "--cacert", &ca, "-h", "127.0.0.1", "-p", &port, "PING"];
    let (_, said, _) = output(Path::new("redis-cli"), &stranger, "", &[]);
    assert!(said.starts_with("NOAUTH"), "{said}");
    // The example for Kubernetes has the same user.
    let example = fs::read_to_string(manifests("examples/redis/users.acl.example")).unwrap();
    assert_eq!(example.replace("REPLACE-THIS-PASSWORD", "a-password"), fs::read_to_string(&acl).unwrap());
}

#[test]
fn postgres_gets_two_roles_of_which_one_owns_nothing() {
    let postgres = Postgres::start(&PostgresOptions::default()).unwrap();
    let admin = postgres.admin_url("postgres");
    let password = admin.split(['/', '@', ':']).find(|part| !["postgres", ""].contains(part)).unwrap();
    let (host, port) = (postgres.address().ip().to_string(), postgres.address().port().to_string());
    let environment = [
        ("PGPASSWORD", password),
        ("PGHOST", &host),
        ("PGPORT", &port),
        ("HORIZON_MIGRATE_PASSWORD", "it's \"one\"; \\"),
        ("HORIZON_RUN_PASSWORD", "another"),
    ];
    let roles = argument("compose/roles.sh");
    let (success, stdout, stderr) = output(Path::new("bash"), &[&roles], "", &environment);
    assert!(success, "{stdout}{stderr}");

    let psql = |user: &str, password: &str, sql: &str| {
        let words = [
            "--no-psqlrc",
            "--quiet",
            "-tA",
            "-v",
            "ON_ERROR_STOP=1",
            "-U",
            user,
            "-d",
            "horizon",
            "-c",
            sql,
        ];
        let environment = [("PGPASSWORD", password), ("PGHOST", &*host), ("PGPORT", &*port)];
        let (success, stdout, stderr) = output(Path::new("psql"), &words, "", &environment);
        if success { Ok(stdout.trim().to_owned()) } else { Err(stderr) }
    };
    psql("horizon_migrate", "it's \"one\"; \\", "create table t (a int); insert into t values (1)").unwrap();
    let attributes = "select rolsuper or rolcreatedb or rolcreaterole or rolreplication or rolbypassrls \
                      from pg_roles where rolname = current_user";
    assert_eq!(psql("horizon_migrate", "it's \"one\"; \\", attributes).unwrap(), "f");
    assert_eq!(psql("horizon_run", "another", attributes).unwrap(), "f");
    for beyond in
        ["select * from t", "create table u (a int)", "create schema s", "create temp table v (a int)"]
    {
        let said = psql("horizon_run", "another", beyond).unwrap_err();
        assert!(said.contains("permission denied"), "{beyond}: {said}");
    }
}
