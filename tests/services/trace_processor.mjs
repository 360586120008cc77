// Perfetto's trace processor, as its own viewer runs it, for one conversation: `node trace_processor.mjs FILE.wasm`.
// Its one job: requests come on stdin, each after its length in 4 bytes (little end first); all replies go to stdout.
// Requests and replies are the bytes of protobuf's `TraceProcessorRpcStream`.

import { readFileSync, writeSync } from "node:fs";

const REQUEST = 32 << 20; // bytes that fit into the module's buffer for requests
const NOT_THERE = 8; // WASI's EBADF: there are no files

let instance, memory;
const view = () => new DataView(memory.buffer);
const text = (at, length) => Buffer.from(memory.buffer, at, length);

const system = {
  emscripten_get_now: () => performance.now(),
  emscripten_date_now: () => Date.now(),
  emscripten_get_heap_max: () => 0xffff0000,
  emscripten_resize_heap(size) {
    const missing = (size >>> 0) - memory.buffer.byteLength;
    try {
      if (missing > 0) memory.grow(Math.ceil(missing / 65536));
      return 1;
    } catch {
      return 0;
    }
  },
  emscripten_err(at) {
    const bytes = new Uint8Array(memory.buffer);
    writeSync(2, text(at, bytes.indexOf(0, at) - at));
  },
  __assert_fail(condition, file, line) {
    throw new Error(`assertion failed in the trace processor, line ${line}`);
  },
  _abort_js() {
    throw new Error("the trace processor aborted");
  },
  _tzset_js(zone, daylight) {
    view().setInt32(zone, 0, true);
    view().setInt32(daylight, 0, true);
  },
  clock_time_get(clock, precision, at) {
    const now = clock === 0 ? BigInt(Date.now()) * 1_000_000n : process.hrtime.bigint();
    view().setBigUint64(at, now, true);
    return 0;
  },
  environ_sizes_get(number, size) {
    view().setUint32(number, 0, true);
    view().setUint32(size, 0, true);
    return 0;
  },
  environ_get: () => 0,
  fd_write(fd, pieces, number, written) {
    let sum = 0;
    for (let index = 0; index < number; index++) {
      const at = view().getUint32(pieces + 8 * index, true);
      const length = view().getUint32(pieces + 8 * index + 4, true);
      writeSync(2, text(at, length)); // what it logs
      sum += length;
    }
    view().setUint32(written, sum, true);
    return 0;
  },
};
const imports = new Proxy(system, { get: (known, name) => known[name] ?? (() => NOT_THERE) });

// A function of JavaScript that the module can call: one that another module has imported and exports.
function callable(fn) {
  const bytes = new Uint8Array([
    0, 97, 115, 109, 1, 0, 0, 0, // the head
    1, 6, 1, 96, 2, 127, 127, 0, // a type: two integers, no result
    2, 7, 1, 1, 101, 1, 102, 0, 0, // import e.f of that type
    7, 5, 1, 1, 102, 0, 0, // export it as f
  ]);
  return new WebAssembly.Instance(new WebAssembly.Module(bytes), { e: { f: fn } }).exports.f;
}

function writeAll(bytes) {
  for (let done = 0; done < bytes.length; ) {
    try {
      done += writeSync(1, bytes, done);
    } catch (error) {
      if (error.code !== "EAGAIN") throw error;
    }
  }
}

const module = new WebAssembly.Module(readFileSync(process.argv[2]));
const needed = {};
for (const { module: from, name } of WebAssembly.Module.imports(module)) (needed[from] ??= {})[name] = imports[name];
instance = new WebAssembly.Instance(module, needed).exports;
memory = instance.memory;
instance.emscripten_stack_init();
instance.__wasm_call_ctors();
const table = instance.__indirect_function_table;
const answer = table.grow(1);
table.set(answer, callable((at, length) => writeAll(Buffer.from(text(at, length)))));
const buffer = instance.trace_processor_rpc_init(answer, REQUEST) >>> 0;

const input = readFileSync(0);
for (let at = 0; at < input.length; ) {
  const length = input.readUInt32LE(at);
  new Uint8Array(memory.buffer).set(input.subarray(at + 4, at + 4 + length), buffer);
  instance.trace_processor_on_rpc_request(length);
  at += 4 + length;
}
