// What a user of huggingface.js does with a repository; prints each answer as a line of JSON.
import { mkdtemp, readFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as hub from "@huggingface/hub";

const { HF_ENDPOINT: hubUrl, HF_TOKEN: accessToken, REPO: name } = process.env;
const repo = { type: "model", name };
const to = { repo, hubUrl, accessToken };
const tell = (what, answer) => console.log(JSON.stringify([what, answer]));
const all = async (found) => {
  const items = [];
  for await (const item of found) items.push(item);
  return items;
};

const header = JSON.stringify({ w: { dtype: "F32", shape: [2, 3], data_offsets: [0, 24] } });
const weights = new Uint8Array(8 + header.length + 24);
new DataView(weights.buffer).setBigUint64(0, BigInt(header.length), true);
weights.set(new TextEncoder().encode(header), 8);

tell("who", (await hub.whoAmI({ hubUrl, accessToken })).name);
await hub.createRepo(to);
tell("exists", await hub.repoExists(to));
await hub.uploadFiles({
  ...to,
  files: [
    { path: "notes.txt", content: new Blob(["notes"]) },
    { path: "model.safetensors", content: new Blob([weights]) },
  ],
  commitTitle: "Add two files",
});
await hub.uploadFile({ ...to, file: { path: "sub/large.bin", content: new Blob([new Uint8Array(9_000_000)]) } });
tell("info", (await hub.modelInfo({ name, hubUrl, accessToken })).name);
tell("files", (await all(hub.listFiles({ ...to, recursive: true }))).map((file) => `${file.type} ${file.path}`));
tell("notes", await (await hub.downloadFile({ ...to, path: "notes.txt" })).text());
tell("large", (await (await hub.downloadFile({ ...to, path: "sub/large.bin" })).arrayBuffer()).byteLength);
tell("size", (await hub.fileDownloadInfo({ ...to, path: "model.safetensors" })).size);
tell("missing", await hub.fileExists({ ...to, path: "missing.txt" }));
tell("paths", (await hub.pathsInfo({ ...to, paths: ["sub", "notes.txt"], expand: true })).map((one) => one.path).sort());
tell("titles", (await all(hub.listCommits(to))).map((commit) => commit.title));
tell("count", await hub.countCommits(to));
tell("header", (await hub.parseSafetensorsMetadata({ ...to, path: "model.safetensors" })).header.w.shape);
await hub.createBranch({ ...to, branch: "dev" });
await hub.createBranch({ ...to, branch: "dev", overwrite: true });
await hub.uploadFile({ ...to, branch: "dev", file: { path: "dev.txt", content: new Blob(["dev"]) } });
tell("on dev", await (await hub.downloadFile({ ...to, path: "dev.txt", revision: "dev" })).text());
await hub.deleteBranch({ ...to, branch: "dev" });
await hub.deleteFiles({ ...to, paths: ["sub/large.bin"] });
const folder = await hub.snapshotDownload({ ...to, cacheDir: await mkdtemp(join(tmpdir(), "hub-")) });
tell("snapshot", await readFile(join(folder, "notes.txt"), "utf8"));
tell("listed", (await all(hub.listModels({ hubUrl, accessToken, search: { owner: name.split("/")[0] } }))).map((m) => m.name));
tell("refused", await hub.checkRepoAccess({ repo: { type: "model", name: `${name}-none` }, hubUrl, accessToken }).catch((e) => e.statusCode));
await hub.deleteRepo(to);
tell("deleted", await hub.repoExists(to));
