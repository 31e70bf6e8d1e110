//! The REST API over real connections, with the real engine and store.

mod attacks;
mod document;
mod doors;
mod flows;
mod kit;
mod limits;
mod matrix;
mod tls;
