// The worker of queue_api.js: one INSERT per message, acknowledged after it, 50 messages at once.
import http from 'node:http';
import amqp from 'amqplib';
import pg from 'pg';

const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL, max: 10 });
const connection = await amqp.connect(process.env.AMQP_URL);
const channel = await connection.createChannel();
await channel.assertQueue('bench.node', { durable: true, arguments: { 'x-queue-type': 'quorum' } });
await channel.prefetch(50);
await channel.consume('bench.node', async (message) => {
  const { id, name, email } = JSON.parse(message.content);
  try {
    await pool.query('INSERT INTO queued_users (id, name, email) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING', [id, name, email]);
    channel.ack(message);
  } catch (error) {
    channel.nack(message);
  }
});

const server = http.createServer((request, response) => response.end('ok')).listen(Number(process.env.PORT), '127.0.0.1');
process.on('SIGTERM', () => server.close(() => connection.close().then(() => pool.end()).then(() => process.exit(0))));
