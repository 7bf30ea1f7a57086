// The tensors of a safetensors file, for Node and for browsers.

const ARRAYS = { F32: Float32Array, F64: Float64Array, I64: BigInt64Array };

/**
 * Returns the tensors of a file by name, as {shape, data}, of the dtypes that an artifact in float32 has.
 *
 * Source: the format is 8 bytes with the length of the header, the header in JSON, and the data, all little-endian.
 * @param {Uint8Array} bytes The whole file.
 */
export function readSafetensors(bytes) {
  const length = Number(new DataView(bytes.buffer, bytes.byteOffset, 8).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length)));
  delete header.__metadata__;
  const tensors = {};
  for (const [name, { dtype, shape, data_offsets: [start, end] }] of Object.entries(header)) {
    if (!(dtype in ARRAYS)) throw new Error(`${name} is ${dtype}, and this example reads ${Object.keys(ARRAYS).join(', ')}.`);
    const from = bytes.byteOffset + 8 + length;
    // A copy, because an array of numbers has to begin at a multiple of their size.
    tensors[name] = { shape, data: new ARRAYS[dtype](bytes.buffer.slice(from + start, from + end)) };
  }
  return tensors;
}
