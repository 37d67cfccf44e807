// Writes ../fixtures/starter_reference.json: what llama.cpp answers greedily on the starter model.
//
// How it was made (Node 20 or newer, in an empty folder outside the repository):
//   npm install node-llama-cpp@3.22.1 @node-llama-cpp/linux-x64@3.22.1     (llama.cpp v0.5.0, prebuilt for the CPU)
//   node llamacpp_reference.mjs <models/qwen2.5-coder-0.5b-instruct-q4_k_m.gguf> <starter_reference.json>
//
// The prompt is the file's own chat template, rendered by @huggingface/jinja (a third implementation, neither ours nor
// llama.cpp's), tokenized by llama.cpp with special tokens on, and continued with temperature 0 and no penalties.
import {createHash} from "node:crypto";
import {createReadStream, writeFileSync} from "node:fs";
import {createRequire} from "node:module";
import {pathToFileURL} from "node:url";

const require = createRequire(pathToFileURL(process.cwd() + "/"));
const load = async name => import(pathToFileURL(require.resolve(name)).href);
const {getLlama} = await load("node-llama-cpp");
const {Template} = await load("@huggingface/jinja");

const [modelPath, outPath] = process.argv.slice(2);
const conversations = [
    {messages: [["user", "What is 7 times 8?"]], maxTokens: 32},
    {messages: [["system", "You are terse."], ["user", "Name the three primary colours."]], maxTokens: 32},
    {messages: [["user", "Write a Rust function that adds two i32 values."]], maxTokens: 48},
    {messages: [["user", "Hi, my name is Ada."], ["assistant", "Hello Ada! How can I help you?"],
        ["user", "What is my name? Grüße aus 東京 🌸."]], maxTokens: 32}
];

const hash = createHash("sha256");
for await (const chunk of createReadStream(modelPath)) hash.update(chunk);

const llama = await getLlama({gpu: false, build: "never", logLevel: "error"});
const model = await llama.loadModel({modelPath});
const template = new Template(model.fileInfo.metadata.tokenizer.chat_template);
const cases = [];
for (const {messages, maxTokens} of conversations) {
    const prompt = template.render({
        messages: messages.map(([role, content]) => ({role, content})), add_generation_prompt: true, tools: null
    });
    const promptIds = model.tokenize(prompt, true);
    const context = await model.createContext({contextSize: 1024, flashAttention: false});
    const ids = [];
    for await (const token of context.getSequence().evaluate(promptIds, {temperature: 0})) {
        ids.push(token);
        if (ids.length >= maxTokens) break;
    }
    // The end-of-generation token itself is not given out.
    const finished = ids.length < maxTokens;
    await context.dispose();
    cases.push({messages, maxTokens, prompt, promptIds: [...promptIds], ids, text: model.detokenize(ids), finished});
    console.log(JSON.stringify(model.detokenize(ids)));
}
writeFileSync(outPath, JSON.stringify({
    madeBy: "node-llama-cpp 3.22.1 with @node-llama-cpp/linux-x64 3.22.1 (llama.cpp v0.5.0, CPU), llamacpp_reference.mjs",
    modelSha256: hash.digest("hex"), cases
}, null, 1) + "\n");
process.exit(0);
