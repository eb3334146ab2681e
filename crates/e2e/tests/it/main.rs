//! End-to-end tests against real `quorate` and PostgreSQL processes. Each names the fault that it
//! makes and the promise that must hold; all end with the checks of `quorate_e2e::check`.

mod attack;
mod carried;
mod cascade;
mod common;
mod contracts;
mod crashes;
mod drills;
mod gateway;
mod hangs;
mod joining;
mod leaving;
mod moves;
mod network;
mod operations;
mod plain;
mod random;
mod reads;
mod rejoin;
mod sabotage;
mod scenarios;
mod slots;
mod standbys;
mod timings;
mod tokens;
mod two_nodes;
mod validation;
