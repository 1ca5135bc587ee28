;; For envoy-wasm-nested-actions.md: holds requests, and continues all of them when the 3,000th has come.
(module
  (import "env" "proxy_set_effective_context" (func $set_effective_context (param i32) (result i32)))
  (import "env" "proxy_continue_stream" (func $continue_stream (param i32) (result i32)))
  (memory (export "memory") 2)
  (global $held (mut i32) (i32.const 0))

  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param i32) (result i32) i32.const 65536)
  ;; The call into the VM behind which the next request is continued.
  (func (export "proxy_on_delete") (param i32))

  (func (export "proxy_on_request_headers") (param $id i32) (param i32 i32) (result i32)
    (local $n i32)
    (i32.store (i32.mul (global.get $held) (i32.const 4)) (local.get $id))
    (global.set $held (i32.add (global.get $held) (i32.const 1)))
    (if (i32.eq (global.get $held) (i32.const 3000)) (then
      (loop $next
        (drop (call $set_effective_context (i32.load (i32.mul (local.get $n) (i32.const 4)))))
        (drop (call $continue_stream (i32.const 0)))
        (local.set $n (i32.add (local.get $n) (i32.const 1)))
        (br_if $next (i32.lt_u (local.get $n) (global.get $held))))))
    i32.const 1))
