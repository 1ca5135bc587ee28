//! The floor: the least that a filter of this kind can cost. A module without a compiler's help or a
//! library's weight, which asks the host for what must be asked. Of small frames it looks for where each
//! begins, as it would have to for a Close frame; it checks nothing and does nothing else.

use testbed::{fetch, Mode, Setup};

/// One call for so many bytes, in steps of so many, through each chunk.
#[derive(Clone, Copy, Debug)]
pub struct Questions {
    pub step: usize,
    pub len: usize,
    /// Goes from header to header in what it is given.
    pub walks: bool,
}

impl Questions {
    /// What is cheapest for frames with a payload of `size`: to copy all of them, or to ask for each
    /// header.
    pub fn for_frames_of(size: usize) -> Self {
        match size {
            0..16_384 => Self { step: 1 << 18, len: 1 << 18, walks: true },
            _ => Self { step: size + 4, len: 14, walks: false },
        }
    }

    /// The HTTP filter alone, with the floor in its place.
    pub fn setup(self) -> Setup {
        let Self { step, len, walks } = self;
        let file = fetch::folder("floor").join(format!("{step}-{len}-{walks}.wasm"));
        let module = wat::parse_str(self.text()).expect("the text is WebAssembly");
        std::fs::write(&file, module).expect("target is writable");
        Setup { module: Some(file), network_filter: None, ..Setup::new(Mode::Filter) }
    }

    /// Both filters, which do nothing, and so leave a close to the baseline's setting.
    pub fn closing() -> Setup {
        Setup {
            module: Self::for_frames_of(0).setup().module,
            delayed_close_timeout: Setup::new(Mode::Baseline).delayed_close_timeout,
            ..Setup::new(Mode::Filter)
        }
    }

    /// The callbacks that the filter has, and their questions; `proxy_abi_version_0_2_1`.
    fn text(self) -> String {
        let Self { step, len, walks } = self;
        let walk =
            if walks { "(call $walk (local.get $buffer) (i32.load (i32.const 4)))" } else { "" };
        // At 32 is how far behind a chunk of either direction the next length byte is. A length that the
        // chunk's end cuts is that of the frame before, which is at 40.
        format!(
            r#"(module
  (import "env" "proxy_get_buffer_bytes"
    (func $get_buffer (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_get_header_map_value"
    (func $get_header (param i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 8)
  (data (i32.const 16) "upgrade")
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param i32) (result i32) (i32.const 65536))
  (func (export "proxy_on_context_create") (param i32 i32)
    (i64.store (i32.const 32) (i64.const 0x100000001)))
  (func (export "proxy_on_delete") (param i32))
  (func $walk (param $buffer i32) (param $len i32)
    (local $cell i32) (local $at i32) (local $byte i32) (local $payload i32)
    (local.set $cell (i32.add (i32.const 32) (i32.shl (local.get $buffer) (i32.const 2))))
    (local.set $at (i32.load (local.get $cell)))
    (block $end
      (loop $next
        (br_if $end (i32.ge_u (local.get $at) (local.get $len)))
        (local.set $byte (i32.load8_u offset=65536 (local.get $at)))
        (local.set $payload (i32.and (local.get $byte) (i32.const 127)))
        (if (i32.eq (local.get $payload) (i32.const 126)) (then
          (if (i32.lt_u (i32.add (local.get $at) (i32.const 2)) (local.get $len)) (then
            (i32.store (i32.const 40) (i32.or
              (i32.shl (i32.load8_u offset=65537 (local.get $at)) (i32.const 8))
              (i32.load8_u offset=65538 (local.get $at))))))
          (local.set $payload (i32.load (i32.const 40)))
          (local.set $at (i32.add (local.get $at) (i32.const 2)))))
        (local.set $at (i32.add
          (i32.add (local.get $at) (local.get $payload))
          (i32.add (i32.shl (i32.shr_u (local.get $byte) (i32.const 7)) (i32.const 2)) (i32.const 2))))
        (br $next)))
    (i32.store (local.get $cell) (i32.sub (local.get $at) (local.get $len))))
  (func $ask (param $buffer i32) (param $left i32)
    (local $at i32)
    (loop $next
      (if (i32.gt_s (local.get $left) (i32.const 0)) (then
        (drop (call $get_buffer (local.get $buffer) (local.get $at)
          (select (i32.const {len}) (local.get $left)
            (i32.lt_s (i32.const {len}) (local.get $left)))
          (i32.const 0) (i32.const 4)))
        {walk}
        (local.set $at (i32.add (local.get $at) (i32.const {step})))
        (local.set $left (i32.sub (local.get $left) (i32.const {step})))
        (br $next)))))
  (func (export "proxy_on_request_body") (param i32 i32 i32) (result i32)
    (call $ask (i32.const 0) (local.get 1))
    (i32.const 0))
  (func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32)
    (drop (call $get_header (i32.const 2) (i32.const 16) (i32.const 7) (i32.const 0) (i32.const 4)))
    (i32.const 0))
  (func (export "proxy_on_response_body") (param i32 i32 i32) (result i32)
    (call $ask (i32.const 1) (local.get 1))
    (i32.const 0)))"#
        )
    }
}
