--
-- DuckDB views of an evaluation. Start DuckDB in the root of the repository and:
--     .read schemas/duckdb/evaluation.sql
--     FROM recheck_win_rates;
-- The folder is the default one. For another:
--     cargo run --release -p balanceddpo-schemas --bin schemas -- sql FOLDER > views.sql

-- One row per image and metric, as in the file.
CREATE OR REPLACE VIEW scores AS
SELECT * FROM read_parquet('{folder}/scores.parquet');

-- One row per pair of models, set, metric and statistic, as in the file.
CREATE OR REPLACE VIEW win_rates AS
SELECT * FROM read_parquet('{folder}/winrates.parquet');

-- Per model, prompt and metric: the best image's score and the mean.
CREATE OR REPLACE VIEW best_of_n AS
SELECT model, prompt_set, prompt_id, prompt, any_value(category) AS category, metric,
       count(*) AS seeds, max(score) AS best, avg(score::DOUBLE) AS mean
FROM scores
WHERE score IS NOT NULL
GROUP BY model, prompt_set, prompt_id, prompt, metric;

-- Per pair of models in both orders, prompt and metric: the best of the images that both models have.
CREATE OR REPLACE VIEW compared AS
SELECT a.model AS model_a, b.model AS model_b, prompt_set, prompt_id, prompt,
       any_value(coalesce(a.category, b.category)) AS category, metric,
       count(*) AS seeds, max(a.score) AS best_a, max(b.score) AS best_b
FROM scores AS a
JOIN scores AS b USING (prompt_set, prompt_id, prompt, seed, metric)
WHERE a.model <> b.model AND a.score IS NOT NULL AND b.score IS NOT NULL
GROUP BY a.model, b.model, prompt_set, prompt_id, prompt, metric;

-- The best-of-n win rates of the file computed again from the scores.
CREATE OR REPLACE VIEW win_rates_again AS
SELECT cell.prompt_set, cell.category, cell.model_a, cell.model_b, cell.metric,
       count(*) AS prompts,
       count(*) FILTER (WHERE best_a > best_b) AS wins,
       count(*) FILTER (WHERE best_a = best_b) AS ties,
       count(*) FILTER (WHERE best_a < best_b) AS losses,
       avg(CASE WHEN best_a > best_b THEN 1 WHEN best_a = best_b THEN 0.5 ELSE 0 END) AS win_rate
FROM (
    SELECT prompt_set, category, model_a, model_b, metric FROM win_rates
    WHERE statistic = 'best_of_n'
) AS cell
JOIN compared AS c
  ON c.model_a = cell.model_a AND c.model_b = cell.model_b AND c.metric = cell.metric
 AND (cell.prompt_set = c.prompt_set OR cell.prompt_set = 'all')
 AND (cell.category IS NULL OR cell.category = c.category)
GROUP BY cell.prompt_set, cell.category, cell.model_a, cell.model_b, cell.metric;

-- A row for each cell of the file that differs from the scores: no row means that the file is right.
CREATE OR REPLACE VIEW recheck_win_rates AS
SELECT w.prompt_set, w.category, w.model_a, w.model_b, w.metric,
       w.wins, again.wins AS wins_again, w.ties, again.ties AS ties_again,
       w.losses, again.losses AS losses_again, w.win_rate, again.win_rate AS win_rate_again
FROM win_rates AS w
LEFT JOIN win_rates_again AS again
  ON again.prompt_set = w.prompt_set AND again.category IS NOT DISTINCT FROM w.category
 AND again.model_a = w.model_a AND again.model_b = w.model_b AND again.metric = w.metric
WHERE w.statistic = 'best_of_n'
  AND (again.prompts IS DISTINCT FROM w.prompts OR again.wins <> w.wins OR again.ties <> w.ties
       OR again.losses <> w.losses OR abs(again.win_rate - w.win_rate) > 1e-12);
