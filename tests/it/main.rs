//! The program as its users meet it: real processes, real sockets, nothing of the library called. Two guards are beside it
//! because they belong to no room: `counts` runs one core to count what a request costs, `tidy` reads the tree.
//!
//! `bed` is the test bed: it starts proxy nodes, stand-ins of the legacy service and scripted origins, and speaks raw
//! HTTP/1.1 to them. Everything it starts ends with the test, however the test ends.

mod bed;

mod bad_input;
mod basics;
mod caching;
mod configuration;
mod counts;
mod failures;
mod fields;
mod keeper;
mod limits;
mod observed;
mod operations;
mod origins;
mod tidy;
