// Echo bot, an example of an AI worker: answers each message with its own text. Needs only amqplib.
//
//   npm ci --omit=dev && AMQP_URL=amqp://guest:guest@127.0.0.1:5672/ node echo_bot.js

import { createHash } from "node:crypto";
import { pathToFileURL } from "node:url";
import { setTimeout as pause } from "node:timers/promises";
import { connect } from "amqplib";

/** @import { ChannelModel, ConfirmChannel, ConsumeMessage } from "amqplib" */
/** @import { IncomingJob } from "./types/incoming-messages.js" */
/** @import { SendMessage } from "./types/message.send.js" */

const JOBS = "incoming-messages";
const COMMANDS = "whatsapp-qr.commands";
const NAME = "message.send";
const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;

/** What can never be answered, whoever tries. */
class Unanswerable extends Error {}

/**
 * Name-based UUID, version 5: the same two give the same id in every language.
 * @param {string} namespace a UUID
 * @param {string} name
 */
export function uuid5(namespace, name) {
  if (!UUID.test(namespace)) throw new Unanswerable(`${namespace} is no UUID`);
  const hash = createHash("sha1").update(Buffer.from(namespace.replaceAll("-", ""), "hex")).update(name).digest();
  hash.writeUInt8((hash.readUInt8(6) & 0x0f) | 0x50, 6);
  hash.writeUInt8((hash.readUInt8(8) & 0x3f) | 0x80, 8);
  return hash.toString("hex", 0, 16).replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}

/**
 * The answer to a job. Its id is derived from the job's: a job that comes twice makes no second answer.
 * @param {ConsumeMessage} job
 * @returns {{ id: string, command: SendMessage }}
 */
function answerTo(job) {
  const id = uuid5(job.properties.messageId ?? "", "answer");
  /** @type {IncomingJob} */
  let question;
  try {
    question = JSON.parse(job.content.toString());
  } catch (error) {
    throw new Unanswerable("the body is no JSON", { cause: error });
  }
  const { chatbotId, externalUserId, content } = question ?? {};
  if (![chatbotId, externalUserId, content].every((field) => typeof field === "string")) {
    throw new Unanswerable("the body is no job");
  }
  return { id, command: { chatbotId, to: externalUserId, message: content || "I can read only text." } };
}

/**
 * Publish a command; resolves once the broker has it on disk, and rejects where that is not known.
 * @param {ConfirmChannel} channel
 * @param {string} id
 * @param {SendMessage} command
 * @param {string} correlationId
 * @param {Record<string, unknown>} trace what goes on with the job's trace
 */
async function send(channel, id, command, correlationId, trace) {
  let returned = false;
  const note = () => (returned = true);
  channel.once("return", note);
  await new Promise((resolve, reject) => {
    const properties = {
      messageId: id,
      correlationId,
      type: NAME,
      headers: { ...trace, "partition-key": command.chatbotId, "schema-version": 1 },
      timestamp: Math.floor(Date.now() / 1000),
      contentType: "application/json",
      persistent: true,
      mandatory: true,
    };
    const body = Buffer.from(JSON.stringify(command));
    // No partition in the routing key: the service passes the command on to the chatbot's.
    channel.publish(COMMANDS, NAME, body, properties, (error) => (error ? reject(error) : resolve(undefined)));
  });
  channel.off("return", note);
  if (returned) throw new Error("no queue takes commands: has the service been started?");
}

/**
 * Answer one job, then acknowledge it: a crash in between makes the broker give it out again.
 * @param {ConfirmChannel} channel
 * @param {ConsumeMessage} job
 */
async function answer(channel, job) {
  const id = job.properties.messageId;
  try {
    const { id: answerId, command } = answerTo(job);
    const headers = Object.entries(job.properties.headers ?? {});
    const trace = Object.fromEntries(headers.filter(([name]) => ["traceparent", "tracestate"].includes(name)));
    await send(channel, answerId, command, id, trace);
    channel.ack(job);
  } catch (error) {
    if (!(error instanceof Unanswerable)) throw error;
    console.log("echo bot: rejected job", id, error.message);
    channel.nack(job, false, false); // to the dead letters, where people look
  }
}

/**
 * Answer jobs until told to stop; rejects where the connection is lost. What is not acknowledged then comes again.
 * @param {ChannelModel} connection
 * @param {Promise<unknown>} stopped
 */
async function work(connection, stopped) {
  const channel = await connection.createConfirmChannel();
  await channel.prefetch(1); // one at a time keeps the order of each conversation
  let working = Promise.resolve();
  /** @type {Promise<never>} */
  const lost = new Promise((_, reject) => {
    for (const source of [connection, channel]) {
      source.on("error", reject);
      source.on("close", () => reject(new Error("the connection is lost")));
    }
    // The queue exists: do not declare it.
    const take = (/** @type {ConsumeMessage | null} */ job) => {
      if (job) (working = answer(channel, job)).catch(reject);
      else reject(new Error("the queue is gone"));
    };
    channel.consume(JOBS, take, { consumerTag: "echo-bot" }).then(() => console.log("echo bot: answering", JOBS), reject);
  });
  await Promise.race([lost, stopped]);
  lost.catch(() => {}); // closing tells it as well
  await channel.cancel("echo-bot");
  await working; // what has begun is finished
  await channel.close();
}

/** Work over one connection after another until SIGTERM or SIGINT. */
async function main() {
  const stopping = new AbortController();
  const stopped = new Promise((resolve) => {
    for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, resolve);
  });
  stopped.then(() => stopping.abort());
  const url = new URL(process.env["AMQP_URL"] ?? "amqp://guest:guest@127.0.0.1:5672/");
  if (!url.searchParams.has("heartbeat")) url.searchParams.set("heartbeat", "5"); // a dead link is noticed within 15 s
  while (!stopping.signal.aborted) {
    /** @type {ChannelModel | undefined} */
    let connection;
    try {
      connection = await connect(url.href, { timeout: 10_000, noDelay: true });
      connection.on("error", () => {}); // `work` hears it
      await work(connection, stopped);
    } catch (error) {
      console.log("echo bot: trying again after", error instanceof Error ? error.message : error);
      await pause(2_000, undefined, { signal: stopping.signal }).catch(() => {});
    }
    await connection?.close().catch(() => {});
  }
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) await main();
