// The tutorial's service with a queue: Express publishes each write to a quorum queue and answers after the confirm.
import { randomUUID } from 'node:crypto';
import amqp from 'amqplib';
import express from 'express';

const connection = await amqp.connect(process.env.AMQP_URL);
const channel = await connection.createConfirmChannel();
await channel.assertQueue('bench.node', { durable: true, arguments: { 'x-queue-type': 'quorum' } });
const app = express();
app.use(express.json());

app.get('/healthz', (request, response) => response.json({ status: 'ok' }));

app.post('/users', (request, response) => {
  const { name, email } = request.body;
  if (!name || !email) return response.status(400).json({ error: 'Name and email are required' });
  const id = randomUUID();
  channel.sendToQueue('bench.node', Buffer.from(JSON.stringify({ id, name, email })), { persistent: true }, (error) => {
    if (error) response.status(503).json({ error: 'Not accepted' });
    else response.status(202).json({ id });
  });
});

const server = app.listen(Number(process.env.PORT), '127.0.0.1');
process.on('SIGTERM', () => server.close(() => connection.close().then(() => process.exit(0))));
