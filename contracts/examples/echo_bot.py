"""Echo bot, an example of an AI worker: answers each message with its own text. Needs only contracts/ and aio-pika."""

import asyncio
import logging
import os
import signal
from uuid import UUID, uuid5

import aio_pika

from whatsapp_qr_contracts.commands import SendMessage
from whatsapp_qr_contracts.jobs import IncomingJob


async def answer(job: aio_pika.abc.AbstractIncomingMessage, commands: aio_pika.abc.AbstractExchange) -> None:
    """Answer one job. The answer's id is derived from the job's: a repeated job makes no second answer."""
    try:
        question, answer_id = IncomingJob.model_validate_json(job.body), uuid5(UUID(job.message_id or ""), "answer")
        text, kept = question.content or "I can read only text.", {k: v for k, v in job.headers.items() if "trace" in k}
        command = SendMessage(chatbot_id=question.chatbot_id, to=question.external_user_id, message=text)
    except ValueError:  # it can never be answered: reject it, so that it becomes a dead letter
        print("echo bot: rejected job", job.message_id, flush=True)
        await job.reject()
    else:
        message = aio_pika.Message(command.wire(), type=command.name, content_type="application/json", delivery_mode=2)
        message.message_id, message.correlation_id, message.headers = str(answer_id), job.message_id, kept
        await commands.publish(message, command.name, mandatory=True, timeout=30)  # returns once it is confirmed
        await job.ack()


async def work(stop: asyncio.Future[None]) -> None:
    """Answer jobs until stopped or the connection is lost: the broker delivers unacknowledged jobs again."""
    async with await aio_pika.connect(os.environ["AMQP_URL"], timeout=10) as connection:
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        await channel.set_qos(prefetch_count=1)  # one at a time keeps the order of each conversation
        jobs, closing = (await channel.get_queue(IncomingJob.name)).iterator(), []  # it exists: do not declare it
        stop.add_done_callback(lambda _: closing.append(asyncio.ensure_future(jobs.close())))
        print("echo bot: answering", IncomingJob.name, flush=True)
        async for job in jobs:
            await answer(job, await channel.get_exchange(SendMessage.exchange, ensure=False))
        await asyncio.gather(*closing)  # while there is a connection


async def main() -> None:
    """Work over one connection after another until SIGTERM or SIGINT."""
    stop = asyncio.get_running_loop().create_future()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.cancel)
    while not stop.done():
        try:
            await work(stop)
        except (asyncio.CancelledError, *aio_pika.exceptions.CONNECTION_EXCEPTIONS) as error:
            print("echo bot: trying again after", type(error).__name__, flush=True)
        await asyncio.wait({stop}, timeout=2)


if __name__ == "__main__":
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)  # a lost connection is expected: no traceback
    asyncio.run(main())
