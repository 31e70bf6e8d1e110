//! The REST API over real connections, with the real engine and store.

mod attacks;
mod doors;
mod flows;
mod kit;
mod matrix;
mod tls;
