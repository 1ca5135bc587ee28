//! The release module in wasmi, under a host that is written for tests: it records each call, refuses
//! those it is told to, and can answer anything at all. A mock behind a trait would test another build of
//! the filter; this is the one that ships, with its linker script, allocator and SDK. wasmi interprets:
//! slower than a compiler, and built in seconds.
//!
//! It has the proxy-wasm ABI 0.2.1 as far as the module uses it, and the WASI calls of Rust's standard
//! library. Its clock is virtual. As in Envoy, what a call asks to be closed is closed behind the call.

use std::collections::{HashMap, VecDeque};
use std::path::Path;

use fastrand::Rng;
pub use wasmi::Error as Trap;
use wasmi::{Caller, Config, Engine, Error, Extern, Instance, Linker, Memory, Module, Store, Val};

/// A status of the ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Ok = 0,
    NotFound = 1,
    BadArgument = 2,
    Empty = 7,
    CasMismatch = 8,
    InternalFailure = 10,
    Unimplemented = 12,
}

impl Status {
    /// Those that say no.
    pub const REFUSALS: [Self; 5] = [
        Self::NotFound,
        Self::BadArgument,
        Self::Empty,
        Self::InternalFailure,
        Self::Unimplemented,
    ];
}

/// Which way a body goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    Request = 0,
    Response = 1,
}

/// What the host does about a call.
#[derive(Default)]
pub enum Mood {
    /// What it is asked.
    #[default]
    Honest,
    /// The same, but refuses the call with this number, counted from when it was told.
    Refuses(usize, Status),
    /// Any status and any bytes, now and then.
    Hostile(Rng),
}

/// What the host knows.
#[derive(Default)]
pub struct Host {
    pub mood: Mood,
    /// The names of the calls, in order, and what they were about.
    pub calls: Vec<(&'static str, String)>,
    /// Nanoseconds.
    pub now: u64,
    /// The plugin's configuration.
    pub config: Vec<u8>,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Attributes, for every context.
    pub attributes: HashMap<String, Vec<u8>>,
    /// What was set on a context.
    pub properties: HashMap<(u32, String), Vec<u8>>,
    pub shared: HashMap<String, (Vec<u8>, u32)>,
    pub queues: Vec<VecDeque<Vec<u8>>>,
    pub metrics: Vec<(String, i64)>,
    pub log: Vec<String>,
    /// Contexts that exist, and of whom each is the root's.
    pub contexts: HashMap<u32, u32>,
    /// The context that is called, or that it has made effective.
    pub current: u32,
    /// What is to be closed behind the call: a context, and what of it.
    pub closes: Vec<(u32, u32)>,
    /// Milliseconds; zero: none.
    pub ticks: HashMap<u32, u32>,
}

impl Host {
    /// Whether a call is refused, and with what.
    fn answer(&mut self, name: &'static str, about: impl Into<String>) -> u32 {
        self.calls.push((name, about.into()));
        match &mut self.mood {
            Mood::Honest => 0,
            Mood::Refuses(0, status) => {
                let status = *status as u32;
                self.mood = Mood::Honest;
                status
            }
            Mood::Refuses(left, _) => {
                *left -= 1;
                0
            }
            Mood::Hostile(rng) => match rng.u8(..8) {
                0 => rng.u32(1..16),
                _ => 0,
            },
        }
    }

    /// What it hands out instead, if it lies.
    fn lie(&mut self) -> Option<Vec<u8>> {
        let Mood::Hostile(rng) = &mut self.mood else { return None };
        (rng.u8(..8) == 0).then(|| {
            let len = [0, 1, 3, 4, 8, 9, 200, 5000][rng.usize(..8)];
            (0..len).map(|_| rng.u8(..)).collect()
        })
    }

    /// The value of a metric.
    pub fn metric(&self, name: &str) -> i64 {
        self.metrics.iter().filter(|(n, _)| n == name).map(|(_, value)| value).sum()
    }

    fn property(&self, path: &str) -> Option<Vec<u8>> {
        let set = |context| self.properties.get(&(context, path.to_owned()));
        // A connection's are seen by its streams: here there is one connection, of context 0.
        set(self.current).or(set(0)).or(self.attributes.get(path)).cloned()
    }
}

type Ctx<'a> = Caller<'a, Host>;

fn memory(caller: &mut Ctx) -> Result<Memory, Error> {
    caller.get_export("memory").and_then(Extern::into_memory).ok_or(Error::new("no memory"))
}

fn bytes(caller: &mut Ctx, at: u32, len: u32) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; len as usize];
    memory(caller)?.read(caller, at as usize, &mut bytes)?;
    Ok(bytes)
}

fn text(caller: &mut Ctx, at: u32, len: u32) -> Result<String, Error> {
    Ok(String::from_utf8_lossy(&bytes(caller, at, len)?).replace('\0', "."))
}

fn put(caller: &mut Ctx, at: u32, bytes: &[u8]) -> Result<(), Error> {
    Ok(memory(caller)?.write(caller, at as usize, bytes)?)
}

fn put_u32(caller: &mut Ctx, at: u32, value: u32) -> Result<(), Error> {
    put(caller, at, &value.to_le_bytes())
}

/// Hands out bytes in memory of the module's.
fn hand_out(caller: &mut Ctx, data: &[u8], at: u32, len: u32) -> Result<(), Error> {
    let lie = caller.data_mut().lie();
    let data = lie.as_deref().unwrap_or(data);
    let allocate = caller.get_export("proxy_on_memory_allocate").and_then(Extern::into_func);
    let allocate = allocate.ok_or(Error::new("no allocator"))?.typed::<u32, u32>(&mut *caller)?;
    let address = allocate.call(&mut *caller, data.len() as u32)?;
    put(caller, address, data)?;
    put_u32(caller, at, address)?;
    put_u32(caller, len, data.len() as u32)
}

/// Reads what is asked for, or says that there is none.
fn give(caller: &mut Ctx, data: Option<Vec<u8>>, at: u32, len: u32) -> Result<u32, Error> {
    match data {
        Some(data) => hand_out(caller, &data, at, len).map(|()| 0),
        None => Ok(Status::NotFound as u32),
    }
}

macro_rules! unless_refused {
    ($caller:ident, $name:literal, $about:expr) => {
        let about: String = $about;
        match $caller.data_mut().answer($name, about) {
            0 => {}
            status => return Ok(status),
        }
    };
}

fn linker(engine: &Engine, module: &Module) -> Result<Linker<Host>, Error> {
    let mut linker: Linker<Host> = Linker::new(engine);
    let l = &mut linker;
    l.func_wrap("env", "proxy_log", |mut c: Ctx, level: u32, at: u32, len: u32| {
        let line = text(&mut c, at, len)?;
        unless_refused!(c, "log", line.clone());
        c.data_mut().log.push(format!("{level} {line}"));
        Ok(0)
    })?;
    l.func_wrap("env", "proxy_get_log_level", |mut c: Ctx, at: u32| {
        unless_refused!(c, "get_log_level", String::new());
        put_u32(&mut c, at, 2).map(|()| 0)
    })?;
    l.func_wrap("env", "proxy_set_tick_period_milliseconds", |mut c: Ctx, period: u32| {
        unless_refused!(c, "set_tick_period", period.to_string());
        let host = c.data_mut();
        let root = host.contexts.get(&host.current).copied().unwrap_or(0);
        host.ticks.insert(if root == 0 { host.current } else { root }, period);
        Ok(0)
    })?;
    l.func_wrap(
        "env",
        "proxy_get_buffer_bytes",
        |mut c: Ctx, kind: u32, start: u32, max: u32, at: u32, len: u32| {
            unless_refused!(c, "get_buffer", format!("{kind} {start} {max}"));
            let buffer = if kind == 7 { c.data().config.clone() } else { c.data().body.clone() };
            let start = start as usize;
            let end = buffer.len().min(start.saturating_add(max as usize));
            let data = buffer.get(start..end).map(<[u8]>::to_vec);
            give(&mut c, data, at, len)
        },
    )?;
    l.func_wrap(
        "env",
        "proxy_set_buffer_bytes",
        |mut c: Ctx, kind: u32, start: u32, size: u32, at: u32, len: u32| {
            let new = bytes(&mut c, at, len)?;
            unless_refused!(c, "set_buffer", format!("{kind} {start} {size} {len}"));
            // `Buffer::copyFrom`: the beginning, all of it, or nothing.
            let body = &mut c.data_mut().body;
            let size = body.len().min(size as usize);
            if start == 0 {
                body.splice(..size, new);
            } else if start as usize >= body.len() {
                body.extend(new);
            } else {
                return Ok(Status::BadArgument as u32);
            }
            Ok(0)
        },
    )?;
    l.func_wrap(
        "env",
        "proxy_get_header_map_value",
        |mut c: Ctx, _: u32, key: u32, key_len: u32, at: u32, len: u32| {
            let key = text(&mut c, key, key_len)?;
            unless_refused!(c, "get_header", key.clone());
            let found = c.data().headers.iter().find(|(name, _)| *name == key);
            let value = found.map(|(_, value)| value.clone().into_bytes());
            give(&mut c, value, at, len)
        },
    )?;
    l.func_wrap("env", "proxy_get_header_map_pairs", |mut c: Ctx, _: u32, at: u32, len: u32| {
        unless_refused!(c, "get_headers", String::new());
        let headers = c.data().headers.clone();
        let mut data = (headers.len() as u32).to_le_bytes().to_vec();
        for (name, value) in &headers {
            data.extend((name.len() as u32).to_le_bytes());
            data.extend((value.len() as u32).to_le_bytes());
        }
        for (name, value) in headers {
            data.extend([name.as_bytes(), b"\0", value.as_bytes(), b"\0"].concat());
        }
        give(&mut c, Some(data), at, len)
    })?;
    l.func_wrap(
        "env",
        "proxy_get_property",
        |mut c: Ctx, path: u32, path_len: u32, at: u32, len: u32| {
            let path = text(&mut c, path, path_len)?;
            unless_refused!(c, "get_property", path.clone());
            let value = c.data().property(&path);
            give(&mut c, value, at, len)
        },
    )?;
    l.func_wrap(
        "env",
        "proxy_set_property",
        |mut c: Ctx, path: u32, path_len: u32, at: u32, len: u32| {
            let (path, value) = (text(&mut c, path, path_len)?, bytes(&mut c, at, len)?);
            unless_refused!(c, "set_property", path.clone());
            // One is declared to be the connection's.
            let host = c.data_mut();
            let owner = if path.ends_with("return_address") { 0 } else { host.current };
            host.properties.insert((owner, path), value);
            Ok(0)
        },
    )?;
    l.func_wrap(
        "env",
        "proxy_get_shared_data",
        |mut c: Ctx, key: u32, key_len: u32, at: u32, len: u32, cas: u32| {
            let key = text(&mut c, key, key_len)?;
            unless_refused!(c, "get_shared_data", key.clone());
            let Some((value, version)) = c.data().shared.get(&key).cloned() else {
                return Ok(Status::NotFound as u32);
            };
            put_u32(&mut c, cas, version)?;
            give(&mut c, Some(value), at, len)
        },
    )?;
    l.func_wrap(
        "env",
        "proxy_set_shared_data",
        |mut c: Ctx, key: u32, key_len: u32, at: u32, len: u32, cas: u32| {
            let (key, value) = (text(&mut c, key, key_len)?, bytes(&mut c, at, len)?);
            unless_refused!(c, "set_shared_data", key.clone());
            let entry = c.data_mut().shared.entry(key).or_default();
            if cas != 0 && cas != entry.1 {
                return Ok(Status::CasMismatch as u32);
            }
            *entry = (value, entry.1 + 1);
            Ok(0)
        },
    )?;
    l.func_wrap("env", "proxy_register_shared_queue", |mut c: Ctx, at: u32, len: u32, id: u32| {
        let name = text(&mut c, at, len)?;
        unless_refused!(c, "register_queue", name);
        c.data_mut().queues.push(VecDeque::new());
        let number = c.data().queues.len() as u32;
        put_u32(&mut c, id, number).map(|()| 0)
    })?;
    l.func_wrap(
        "env",
        "proxy_enqueue_shared_queue",
        |mut c: Ctx, queue: u32, at: u32, len: u32| {
            let message = bytes(&mut c, at, len)?;
            unless_refused!(c, "enqueue", queue.to_string());
            match c.data_mut().queues.get_mut((queue as usize).wrapping_sub(1)) {
                Some(queue) => queue.push_back(message),
                None => return Ok(Status::NotFound as u32),
            }
            Ok(0)
        },
    )?;
    l.func_wrap(
        "env",
        "proxy_dequeue_shared_queue",
        |mut c: Ctx, queue: u32, at: u32, len: u32| {
            unless_refused!(c, "dequeue", queue.to_string());
            let queue = c.data_mut().queues.get_mut((queue as usize).wrapping_sub(1));
            let Some(message) = queue.and_then(VecDeque::pop_front) else {
                return Ok(Status::Empty as u32);
            };
            give(&mut c, Some(message), at, len)
        },
    )?;
    l.func_wrap("env", "proxy_close_stream", |mut c: Ctx, stream: u32| {
        unless_refused!(c, "close_stream", stream.to_string());
        let host = c.data_mut();
        host.closes.push((host.current, stream));
        Ok(0)
    })?;
    l.func_wrap("env", "proxy_set_effective_context", |mut c: Ctx, context: u32| {
        unless_refused!(c, "set_effective_context", context.to_string());
        let host = c.data_mut();
        if !host.contexts.contains_key(&context) {
            return Ok(Status::BadArgument as u32);
        }
        host.current = context;
        Ok(0)
    })?;
    l.func_wrap(
        "env",
        "proxy_call_foreign_function",
        |mut c: Ctx, name: u32, name_len: u32, _: u32, _: u32, at: u32, len: u32| {
            let name = text(&mut c, name, name_len)?;
            unless_refused!(c, "call_foreign_function", name);
            put_u32(&mut c, at, 0)?;
            put_u32(&mut c, len, 0).map(|()| 0)
        },
    )?;
    l.func_wrap("env", "proxy_define_metric", |mut c: Ctx, _: u32, at: u32, len: u32, id: u32| {
        let name = text(&mut c, at, len)?;
        unless_refused!(c, "define_metric", name.clone());
        let metrics = &mut c.data_mut().metrics;
        metrics.push((name, 0));
        let number = metrics.len() as u32;
        put_u32(&mut c, id, number).map(|()| 0)
    })?;
    l.func_wrap("env", "proxy_increment_metric", |mut c: Ctx, id: u32, offset: i64| {
        let name =
            c.data().metrics.get((id as usize).wrapping_sub(1)).map(|(name, _)| name.clone());
        unless_refused!(c, "increment_metric", name.unwrap_or_default());
        match c.data_mut().metrics.get_mut((id as usize).wrapping_sub(1)) {
            Some((_, value)) => *value += offset,
            None => return Ok(Status::NotFound as u32),
        }
        Ok(0)
    })?;
    l.func_wrap("env", "proxy_record_metric", |mut c: Ctx, id: u32, _: u64| {
        unless_refused!(c, "record_metric", id.to_string());
        Ok(0)
    })?;
    wasi(l)?;
    // What the SDK imports, and the module does not call. Those that are defined are refused.
    for import in module.imports() {
        if let Some(ty) = import.ty().func() {
            let called = format!("{} is called", import.name());
            let trap = move |_: Ctx, _: &[Val], _: &mut [Val]| Err(Error::new(called.clone()));
            let _ = linker.func_new(import.module(), import.name(), ty.clone(), trap);
        }
    }
    Ok(linker)
}

fn wasi(l: &mut Linker<Host>) -> Result<(), Error> {
    const WASI: &str = "wasi_snapshot_preview1";
    l.func_wrap(WASI, "clock_time_get", |mut c: Ctx, _: u32, _: u64, at: u32| {
        let host = c.data_mut();
        // Never refused: the standard library would panic.
        host.calls.push(("clock_time_get", String::new()));
        let now = host.now;
        put(&mut c, at, &now.to_le_bytes()).map(|()| 0)
    })?;
    l.func_wrap(WASI, "random_get", |mut c: Ctx, at: u32, len: u32| {
        put(&mut c, at, &vec![7; len as usize]).map(|()| 0)
    })?;
    l.func_wrap(WASI, "environ_sizes_get", |mut c: Ctx, count: u32, size: u32| {
        put_u32(&mut c, count, 0)?;
        put_u32(&mut c, size, 0).map(|()| 0)
    })?;
    l.func_wrap(WASI, "environ_get", |_: Ctx, _: u32, _: u32| 0)?;
    l.func_wrap(WASI, "fd_write", |mut c: Ctx, _: u32, _: u32, _: u32, written: u32| {
        put_u32(&mut c, written, 0).map(|()| 0)
    })?;
    Ok(())
}

/// The module, compiled.
pub struct Compiled {
    engine: Engine,
    module: Module,
    linker: Linker<Host>,
}

/// More than any callback takes: one that never ends runs out of it.
const FUEL: u64 = 50_000_000;

impl Compiled {
    /// # Errors
    /// If the file is no module that this host can link.
    pub fn new(file: &Path) -> Result<Self, Error> {
        let mut config = Config::default();
        config.consume_fuel(true);
        let engine = Engine::new(&config);
        let bytes = std::fs::read(file).map_err(|e| Error::new(e.to_string()))?;
        let module = Module::new(&engine, bytes)?;
        let linker = linker(&engine, &module)?;
        Ok(Self { engine, module, linker })
    }

    /// A VM of its own.
    ///
    /// # Errors
    /// If the module traps while it is initialized.
    pub fn start(&self) -> Result<Vm, Error> {
        let mut store = Store::new(&self.engine, Host::default());
        store.set_fuel(FUEL)?;
        let instance = self.linker.instantiate_and_start(&mut store, &self.module)?;
        let mut vm = Vm { store, instance };
        vm.call("_initialize", &[])?;
        Ok(vm)
    }
}

/// One VM with the module.
pub struct Vm {
    pub store: Store<Host>,
    instance: Instance,
}

impl Vm {
    /// What the host knows.
    pub fn host(&mut self) -> &mut Host {
        self.store.data_mut()
    }

    /// Bytes of the module's memory.
    pub fn memory_len(&mut self) -> usize {
        self.instance.get_memory(&mut self.store, "memory").map_or(0, |m| m.data_size(&self.store))
    }

    /// Calls what the module exports; its result, if it has one.
    ///
    /// # Errors
    /// If it traps, or does not come to an end.
    pub fn call(&mut self, name: &str, arguments: &[u32]) -> Result<u32, Error> {
        let function = self.instance.get_func(&mut self.store, name);
        let function = function.ok_or_else(|| Error::new(format!("no export {name}")))?;
        let arguments: Vec<_> = arguments.iter().map(|&a| Val::I32(a as i32)).collect();
        let results = function.ty(&self.store).results().len();
        let mut result = vec![Val::I32(0); results];
        self.store.set_fuel(FUEL)?;
        function.call(&mut self.store, &arguments, &mut result).map_err(|e| {
            let calls = &self.store.data().calls;
            let last = calls.get(calls.len().saturating_sub(10)..).unwrap_or_default();
            Error::new(format!("{name} {arguments:?}, behind {} calls: {last:?}: {e}", calls.len()))
        })?;
        Ok(result.first().and_then(Val::i32).unwrap_or(0) as u32)
    }

    fn callback(&mut self, name: &str, context: u32, more: &[u32]) -> Result<u32, Error> {
        self.host().current = context;
        self.call(name, &[&[context], more].concat())
    }

    /// Creates a context of `root`; a root context if that is 0.
    ///
    /// # Errors
    /// As [`Vm::call`].
    pub fn create(&mut self, context: u32, root: u32) -> Result<(), Error> {
        self.host().contexts.insert(context, root);
        self.callback("proxy_on_context_create", context, &[root]).map(drop)
    }

    /// Configures a root context; whether it takes the configuration.
    ///
    /// # Errors
    /// As [`Vm::call`].
    pub fn configure(&mut self, root: u32, config: &str) -> Result<bool, Error> {
        self.host().config = config.as_bytes().to_vec();
        let len = config.len() as u32;
        self.callback("proxy_on_configure", root, &[len]).map(|taken| taken != 0)
    }

    /// The response's headers.
    ///
    /// # Errors
    /// As [`Vm::call`].
    pub fn response(
        &mut self,
        context: u32,
        headers: &[(&str, &str)],
        end: bool,
    ) -> Result<(), Error> {
        let own = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
        self.host().headers = headers.iter().map(own).collect();
        let arguments = [headers.len() as u32, end.into()];
        self.callback("proxy_on_response_headers", context, &arguments).map(drop)
    }

    /// A chunk; what is passed on of it.
    ///
    /// # Errors
    /// As [`Vm::call`].
    pub fn body(
        &mut self,
        context: u32,
        way: Body,
        bytes: &[u8],
        end: bool,
    ) -> Result<Vec<u8>, Error> {
        self.lying_body(context, way, bytes, bytes.len(), end)
    }

    /// A chunk, and another length than it has.
    ///
    /// # Errors
    /// As [`Vm::call`].
    pub fn lying_body(
        &mut self,
        context: u32,
        way: Body,
        bytes: &[u8],
        len: usize,
        end: bool,
    ) -> Result<Vec<u8>, Error> {
        let name = match way {
            Body::Request => "proxy_on_request_body",
            Body::Response => "proxy_on_response_body",
        };
        self.host().body = bytes.to_vec();
        let action = self.callback(name, context, &[len as u32, end.into()])?;
        assert_eq!(action, 0, "no body is ever paused");
        Ok(std::mem::take(&mut self.host().body))
    }

    /// # Errors
    /// As [`Vm::call`].
    pub fn tick(&mut self, root: u32) -> Result<(), Error> {
        self.callback("proxy_on_tick", root, &[]).map(drop)
    }

    /// # Errors
    /// As [`Vm::call`].
    pub fn queue_ready(&mut self, root: u32, queue: u32) -> Result<(), Error> {
        self.callback("proxy_on_queue_ready", root, &[queue]).map(drop)
    }

    /// # Errors
    /// As [`Vm::call`].
    pub fn delete(&mut self, context: u32) -> Result<(), Error> {
        let result = self.callback("proxy_on_delete", context, &[]).map(drop);
        self.host().contexts.remove(&context);
        self.host().properties.retain(|(owner, _), _| *owner != context);
        result
    }
}
