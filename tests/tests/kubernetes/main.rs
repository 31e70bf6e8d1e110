//! Horizon on a real API server.

mod corpus;
