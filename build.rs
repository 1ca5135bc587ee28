//! Refuses to build a module that would trap.

use std::env::var;

/// The linker of the module, from `.cargo/config.toml`.
const LINKER: &str = "scripts/wasm-ld";

fn main() {
    println!("cargo::rerun-if-changed={LINKER}");
    println!("cargo::rerun-if-env-changed=RUSTC_LINKER");
    let is_wasm = var("CARGO_CFG_TARGET_FAMILY").is_ok_and(|family| family == "wasm");
    let flags = var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    let is_ours = var("RUSTC_LINKER").is_ok_and(|linker| linker.ends_with(LINKER))
        && !flags.split('\u{1f}').any(|flag| flag.trim_start_matches("-C").starts_with("linker="));
    if is_wasm && !is_ours {
        println!(
            "cargo::error=the module must be linked by {LINKER}, which leaves out callbacks on which \
             it would trap: build in the project's own folder, so that .cargo/config.toml is read, and \
             set no other linker (WASM_LD=… names another wasm-ld to use)"
        );
    }
}
