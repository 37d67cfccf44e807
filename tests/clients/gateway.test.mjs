// What programs in the field send and read, by the clients they send and read it with.

import assert from "node:assert/strict";
import { after } from "node:test";

import Anthropic from "@anthropic-ai/sdk";
import { Ollama } from "ollama";
import OpenAI from "openai";

import { checkPage, feature } from "./conformance.mjs";
import { serve } from "./server.mjs";

const server = await serve();
after(() => server.stop());

const openai = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: "any", maxRetries: 0 });
const anthropic = new Anthropic({ baseURL: server.url, apiKey: "any", maxRetries: 0 });
const ollama = new Ollama({ host: server.url });

const { model } = server;
const messages = [{ role: "user", content: "Say the word blue and nothing else." }];
const greedy = { model, messages, temperature: 0, max_tokens: 8 };
const schema = {
  type: "object",
  properties: { color: { enum: ["red", "blue"] } },
  required: ["color"],
  additionalProperties: false,
};
const before = "def fib(n):\n    if n < 2:\n";
const behind = "\n    return fib(n - 1) + fib(n - 2)\n";

/** All that a stream gives. */
async function all(stream) {
  const items = [];
  for await (const item of stream) items.push(item);
  return items;
}

/** The error that a call fails with. */
async function failure(call) {
  try {
    await call();
  } catch (error) {
    return error;
  }
  return assert.fail("it was answered");
}

/** Waits until no answer is being written. */
async function idle() {
  for (let tries = 0; tries < 100; tries++) {
    const health = await (await fetch(`${server.url}/health`)).json();
    if (health.slots_busy === 0) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  assert.fail("an answer is still being written after five seconds");
}

// OpenAI's chat completions.
{
  const chat = (name, run) => feature("OpenAI: chat completions", "openai", name, run);
  const create = (more) => openai.chat.completions.create({ ...greedy, ...more });
  const whole = (await create({})).choices[0].message.content;

  chat("models are listed", async () => {
    const ids = (await openai.models.list()).data.map((entry) => entry.id);
    assert.ok(ids.includes(model), ids.join());
  });
  chat("an answer, with usage", async () => {
    const reply = await create({});
    assert.match(reply.choices[0].message.content, /blue/i);
    assert.ok(reply.usage.prompt_tokens > 0 && reply.usage.completion_tokens > 0);
  });
  chat("the same answer streamed, with usage at its end", async () => {
    const chunks = await all(await create({ stream: true, stream_options: { include_usage: true } }));
    assert.equal(chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join(""), whole);
    assert.ok(chunks.at(-1).usage.completion_tokens > 0);
  });
  chat("max_tokens ends an answer", async () => {
    const [choice] = (await create({ max_tokens: 1 })).choices;
    assert.equal(choice.finish_reason, "length");
  });
  chat("stop ends an answer before its text", async () => {
    const [choice] = (await create({ stop: [whole.trim().slice(1, 3)] })).choices;
    assert.deepEqual([choice.finish_reason, choice.message.content], ["stop", whole.slice(0, whole.indexOf(whole.trim()) + 1)]);
  });
  chat("n answers, whole and streamed", async () => {
    assert.equal((await create({ n: 3 })).choices.length, 3);
    const chunks = await all(await create({ n: 2, stream: true }));
    const ended = chunks.flatMap((chunk) => chunk.choices).filter((choice) => choice.finish_reason);
    assert.deepEqual(ended.map((choice) => choice.index).sort(), [0, 1]);
  });
  chat("seed: the same text twice", async () => {
    const text = async () => (await create({ seed: 3, temperature: 1.2 })).choices[0].message.content;
    assert.equal(await text(), await text());
  });
  chat("logprobs and top_logprobs", async () => {
    const [choice] = (await create({ logprobs: true, top_logprobs: 2 })).choices;
    const [first] = choice.logprobs.content;
    assert.equal(first.top_logprobs.length, 2);
    assert.equal(first.token, first.top_logprobs[0].token);
  });
  chat("response_format: a JSON schema", async () => {
    const format = { type: "json_schema", json_schema: { name: "answer", schema, strict: true } };
    const [choice] = (await create({ response_format: format, max_tokens: 40 })).choices;
    assert.deepEqual(Object.keys(JSON.parse(choice.message.content)), ["color"]);
  });
  chat("tools: a call and its result in the conversation", async () => {
    const call = { id: "call00001", type: "function", function: { name: "sky", arguments: "{}" } };
    const talk = [
      { role: "user", content: "Which color does the sky have? Ask the tool." },
      { role: "assistant", content: null, tool_calls: [call] },
      { role: "tool", tool_call_id: "call00001", content: "green" },
      { role: "user", content: "Which color did it say? One word." },
    ];
    const tools = [{ type: "function", function: { name: "sky", description: "tells the color of the sky" } }];
    const [choice] = (await create({ messages: talk, tools, max_tokens: 24 })).choices;
    assert.match(choice.message.content, /green/i);
  });
  chat("a client that goes away stops its answer", async () => {
    const stream = await create({ stream: true, max_tokens: 4000, messages: [{ role: "user", content: "Count to 1000." }] });
    for await (const _ of stream) break;
    await idle();
  });
  chat("errors: a parameter, a model, a context that is full", async () => {
    const wrong = await failure(() => create({ temperature: -1 }));
    assert.ok(wrong instanceof OpenAI.BadRequestError && wrong.param === "temperature", String(wrong));
    assert.ok((await failure(() => create({ model: "none" }))) instanceof OpenAI.NotFoundError);
    const long = [{ role: "user", content: "word ".repeat(40_000) }];
    const full = await failure(() => create({ messages: long }));
    assert.ok(full instanceof OpenAI.BadRequestError && full.code === "context_length_exceeded", String(full));
  });
}

// OpenAI's completions.
{
  const text = (name, run) => feature("OpenAI: completions", "openai", name, run);
  const create = (more) => openai.completions.create({ model, prompt: "One, two,", temperature: 0, max_tokens: 6, ...more });

  text("text is gone on with, whole and streamed", async () => {
    const [choice] = (await create({})).choices;
    assert.match(choice.text, /^ three/);
    const chunks = await all(await create({ stream: true }));
    assert.equal(chunks.map((chunk) => chunk.choices[0].text).join(""), choice.text);
  });
  text("several prompts, n and echo", async () => {
    const { choices } = await create({ prompt: ["One, two,", "A, B,"], n: 2, echo: true });
    assert.deepEqual(choices.map((choice) => choice.text.slice(0, 5)), ["One, ", "One, ", "A, B,", "A, B,"]);
  });
  text("logprobs", async () => {
    const { logprobs } = (await create({ logprobs: 2 })).choices[0];
    assert.equal(logprobs.tokens.length, logprobs.token_logprobs.length);
    assert.equal(Object.keys(logprobs.top_logprobs[0]).length, 2);
  });
  text("suffix: what is between two texts", async () => {
    const [choice] = (await create({ prompt: before, suffix: behind, max_tokens: 12 })).choices;
    assert.match(choice.text, /return n/);
  });
  text("errors: a prompt of token ids", async () => {
    const wrong = await failure(() => create({ prompt: [1, 2] }));
    assert.ok(wrong instanceof OpenAI.BadRequestError && wrong.param === "prompt", String(wrong));
  });
}

// OpenAI's responses.
{
  const responses = (name, run) => feature("OpenAI: responses", "openai", name, run);
  const create = (more) => openai.responses.create({ model, input: messages, temperature: 0, max_output_tokens: 16, ...more });

  responses("an answer", async () => {
    const reply = await create({ instructions: "Be brief." });
    assert.match(reply.output_text, /blue/i);
    assert.ok(reply.usage.total_tokens > 0);
  });
  responses("events, in their order", async () => {
    const events = await all(await create({ stream: true, max_output_tokens: 200 }));
    const types = events.map((event) => event.type);
    assert.deepEqual([types[0], types.at(-1)], ["response.created", "response.completed"]);
    const text = events.filter((event) => event.type === "response.output_text.delta").map((event) => event.delta).join("");
    assert.match(text, /blue/i);
    assert.deepEqual(events.map((event) => event.sequence_number), [...events.keys()]);
  });
  responses("text.format: a JSON schema", async () => {
    const format = { type: "json_schema", name: "answer", schema, strict: true };
    const reply = await create({ text: { format }, max_output_tokens: 40 });
    assert.deepEqual(Object.keys(JSON.parse(reply.output_text)), ["color"]);
  });
}

// Anthropic's messages.
{
  const claude = (name, run) => feature("Anthropic: messages", "@anthropic-ai/sdk", name, run);
  const ask = { model, messages, temperature: 0, max_tokens: 8 };

  claude("an answer, with usage", async () => {
    const reply = await anthropic.messages.create({ ...ask, system: "Be brief." });
    assert.match(reply.content[0].text, /blue/i);
    assert.ok(reply.usage.input_tokens > 0 && reply.usage.output_tokens > 0);
  });
  claude("the same answer streamed", async () => {
    const stream = anthropic.messages.stream(ask);
    const streamed = await stream.finalText();
    assert.equal(streamed, (await anthropic.messages.create(ask)).content[0].text);
    assert.ok((await stream.finalMessage()).usage.output_tokens > 0);
  });
  claude("max_tokens and stop_sequences end an answer", async () => {
    assert.equal((await anthropic.messages.create({ ...ask, max_tokens: 1 })).stop_reason, "max_tokens");
    const counting = [{ role: "user", content: "Write: one two three four five" }];
    const stopped = await anthropic.messages.create({ ...ask, messages: counting, max_tokens: 40, stop_sequences: ["three"] });
    assert.ok(!stopped.content.some((block) => block.text?.includes("three")), JSON.stringify(stopped));
  });
  claude("count_tokens: as many as the answer is then charged with", async () => {
    const counted = await anthropic.messages.countTokens({ model, messages });
    const { usage } = await anthropic.messages.create(ask);
    assert.equal(counted.input_tokens, usage.input_tokens + (usage.cache_read_input_tokens ?? 0));
  });
  claude("tools: a call and its result in the conversation", async () => {
    const talk = [
      { role: "user", content: "Which color does the sky have? Ask the tool." },
      { role: "assistant", content: [{ type: "tool_use", id: "toolu_1", name: "sky", input: {} }] },
      { role: "user", content: [{ type: "tool_result", tool_use_id: "toolu_1", content: "green" }] },
      { role: "user", content: "Which color did it say? One word." },
    ];
    const tools = [{ name: "sky", description: "tells the color of the sky", input_schema: { type: "object" } }];
    const reply = await anthropic.messages.create({ ...ask, messages: talk, tools, max_tokens: 24 });
    assert.match(JSON.stringify(reply.content), /green/i);
  });
  claude("errors: a model, a context that is full", async () => {
    assert.ok((await failure(() => anthropic.messages.create({ ...ask, model: "none" }))) instanceof Anthropic.NotFoundError);
    const long = [{ role: "user", content: "word ".repeat(40_000) }];
    const full = await failure(() => anthropic.messages.create({ ...ask, messages: long }));
    assert.ok(full instanceof Anthropic.BadRequestError && /prompt is too long/.test(full.message), String(full));
  });
}

// Ollama's.
{
  const native = (name, run) => feature("Ollama", "ollama", name, run);
  const options = { temperature: 0, num_predict: 8 };

  native("chat, whole and streamed", async () => {
    const reply = await ollama.chat({ model, messages, options });
    assert.match(reply.message.content, /blue/i);
    assert.ok(reply.done && reply.eval_count > 0 && reply.prompt_eval_count > 0);
    const parts = await all(await ollama.chat({ model, messages, options, stream: true }));
    assert.equal(parts.map((part) => part.message.content).join(""), reply.message.content);
  });
  native("generate", async () => {
    const reply = await ollama.generate({ model, prompt: messages[0].content, system: "Be brief.", options });
    assert.match(reply.response, /blue/i);
  });
  native("generate: raw, and with a suffix", async () => {
    const raw = await ollama.generate({ model, prompt: "One, two,", raw: true, options });
    assert.match(raw.response, /^ three/);
    const filled = await ollama.generate({ model, prompt: before, suffix: behind, options: { ...options, num_predict: 12 } });
    assert.match(filled.response, /return n/);
  });
  native("format: a JSON schema", async () => {
    const reply = await ollama.chat({ model, messages, format: schema, options: { ...options, num_predict: 40 } });
    assert.deepEqual(Object.keys(JSON.parse(reply.message.content)), ["color"]);
  });
  native("logprobs and top_logprobs", async () => {
    const reply = await ollama.chat({ model, messages, options, logprobs: true, top_logprobs: 2 });
    assert.equal(reply.logprobs[0].top_logprobs.length, 2);
    assert.equal(reply.logprobs.map((token) => token.token).join("").trim(), reply.message.content.trim());
  });
  native("list, show and ps", async () => {
    assert.ok((await ollama.list()).models.some((entry) => entry.name === model));
    assert.ok((await ollama.show({ model })).capabilities.includes("completion"));
    assert.deepEqual((await ollama.ps()).models.map((entry) => entry.name), [model]);
  });
  native("errors: a model", async () => {
    const wrong = await failure(() => ollama.chat({ model: "none", messages }));
    assert.equal(wrong.status_code, 404);
  });
}

checkPage();
