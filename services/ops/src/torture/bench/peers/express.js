// The tutorial's service: Express in front of PostgreSQL, a pool of 10 connections, one INSERT or SELECT per request.
import express from 'express';
import pg from 'pg';

const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL, max: 10 });
const app = express();
app.use(express.json());

app.get('/healthz', (request, response) => response.json({ status: 'ok' }));

app.get('/users/:id', async (request, response) => {
  const { rows } = await pool.query('SELECT id, name, email, created_at FROM users WHERE id = $1', [request.params.id]);
  if (rows.length === 0) return response.status(404).json({ error: 'User not found' });
  response.json(rows[0]);
});

app.post('/users', async (request, response) => {
  const { name, email } = request.body;
  if (!name || !email) return response.status(400).json({ error: 'Name and email are required' });
  const { rows } = await pool.query(
    'INSERT INTO users (name, email) VALUES ($1, $2) RETURNING id, name, email, created_at',
    [name, email],
  );
  response.status(201).json(rows[0]);
});

app.use((error, request, response, next) => response.status(500).json({ error: 'Internal server error' }));

const server = app.listen(Number(process.env.PORT), '127.0.0.1');
process.on('SIGTERM', () => server.close(() => pool.end().then(() => process.exit(0))));
