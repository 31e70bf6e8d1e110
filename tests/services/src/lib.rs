//! The services a controller in production stands on, real and disposable: a Kubernetes API server, PostgreSQL, Redis.
//!
//! Each fixture starts processes of its own on free ports with files in a folder of its own, and takes all of it away
//! when dropped. Its processes also die with the process that started them, whatever ends it. Nothing here uses, or
//! touches, a service or a configuration of the machine.
//!
//! A fixture lives at a [`Site`]: the machine's loopback device, or a network namespace and an address in it.

mod kube;
mod options;
mod pki;
mod postgres;
mod process;
mod programs;
mod proxy;
mod redis;
mod site;

pub use kube::{Audited, KubeApi};
pub use options::{KubeOptions, PostgresOptions, RedisOptions, RedisShape};
pub use pki::{Authority, Certificate};
pub use postgres::Postgres;
pub use process::{PATIENCE, Process, send, tail, until};
pub use programs::{KubernetesPrograms, published};
pub use proxy::Proxy;
pub use redis::Redis;
pub use site::Site;
