//! The program as its users meet it: real processes, real sockets, nothing of the library called. Two guards are beside it
//! because they belong to no room: `counts` runs one core to count what a request costs, `tidy` reads the tree.
//!
//! `bed` is the test bed: it starts proxy nodes, stand-ins of the legacy service and scripted origins, and speaks HTTP/1.1,
//! HTTP/2 and HTTP/3 to them, properly or not. Everything it starts ends with the test, however the test ends.

mod bed;

mod bad_input;
mod basics;
mod billing;
mod caching;
mod configuration;
mod counts;
mod draining;
mod failures;
mod fields;
mod http2;
mod http3;
mod keeper;
mod limits;
mod malformed_h2;
mod malformed_h3;
mod observed;
mod operations;
mod origins;
mod protocols;
mod proxied;
mod stalled;
mod tidy;
mod tls;
