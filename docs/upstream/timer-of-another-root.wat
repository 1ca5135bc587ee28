;; For envoy-wasm-timer-of-another-root.md: eight root contexts in one VM, seven with a timer. A request has the timer of
;; the first fire; the tick sets one for the eighth.
(module
  (import "env" "proxy_set_effective_context" (func $set_effective_context (param i32) (result i32)))
  (import "env" "proxy_set_tick_period_milliseconds" (func $set_tick_period (param i32) (result i32)))
  (import "env" "proxy_set_shared_data" (func $set_shared_data (param i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (global $roots (mut i32) (i32.const 0))
  (global $eighth (mut i32) (i32.const 0))
  (global $requested (mut i32) (i32.const 0))

  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param i32) (result i32) i32.const 32768)

  (func (export "proxy_on_context_create") (param $id i32) (param $parent i32)
    (if (i32.eqz (local.get $parent)) (then
      (global.set $roots (i32.add (global.get $roots) (i32.const 1)))
      (global.set $eighth (local.get $id)))))

  (func (export "proxy_on_configure") (param i32 i32) (result i32)
    (if (i32.le_u (global.get $roots) (i32.const 7))
      (then (drop (call $set_tick_period (i32.const 3600000)))))
    i32.const 1)

  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    ;; The first of the eight filters.
    (if (i32.eqz (global.get $requested)) (then
      (global.set $requested (i32.const 1))
      (drop (call $set_tick_period (i32.const 1)))))
    i32.const 0)

  (func (export "proxy_on_tick") (param $id i32)
    (local $size i32)
    ;; Envoy's map of seven timers grows, and what it leaves behind is free memory.
    (drop (call $set_effective_context (global.get $eighth)))
    (drop (call $set_tick_period (i32.const 3600000)))
    ;; Values of 64 to 264 bytes under new keys: one of them takes that memory.
    (memory.fill (i32.const 4096) (i32.const 0x5a) (i32.const 512))
    (local.set $size (i32.const 64))
    (loop $next
      (i32.store (i32.const 0) (local.get $size))
      (drop (call $set_shared_data (i32.const 0) (i32.const 4) (i32.const 4096) (local.get $size) (i32.const 0)))
      (local.set $size (i32.add (local.get $size) (i32.const 4)))
      (br_if $next (i32.le_u (local.get $size) (i32.const 264))))))
