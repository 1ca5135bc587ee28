//! What a mesh does to a filter, while WebSockets open and close all the time.

mod crowd;
mod faults;
mod hostile;
mod resources;
mod soak;
mod updates;
