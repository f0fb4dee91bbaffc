//! The catalog at work, on real hosts and sockets: groups come and go as it intends, drains outlive
//! processes, leaders spread by themselves, and all else goes on without it.

mod cluster;
mod drains;
mod groups;
mod orders;
mod planning;
