--
-- DuckDB views of a cache of latents. Start DuckDB in the root of the repository and:
--     .read schemas/duckdb/latents.sql
--     FROM latents_summary;
-- The folder is the default one. For another:
--     cargo run --release -p balanceddpo-schemas --bin schemas -- sql FOLDER > views.sql

-- One row per pair.
CREATE OR REPLACE VIEW latents AS
SELECT * FROM read_parquet('{latents}/latents-*.parquet');

-- One row per caption; JOIN latents USING (caption_index).
CREATE OR REPLACE VIEW captions AS
SELECT * FROM read_parquet('{latents}/captions-*.parquet');

-- For each input file: how many pairs have latents, and statistics of these.
CREATE OR REPLACE VIEW latents_summary AS
SELECT source_file,
       count(*) AS pairs,
       count(*) FILTER (WHERE status <> 'ok') AS failed,
       avg(list_avg(image_0_mean)) AS mean,
       avg(list_stddev_pop(image_0_mean)) AS std_of_means,
       avg(list_avg(image_0_std)) AS mean_std
FROM latents
GROUP BY source_file
ORDER BY source_file;
