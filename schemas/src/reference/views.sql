--
-- DuckDB views of a labels file. Start DuckDB in the root of the repository and:
--     .read schemas/duckdb/labels.sql
--     FROM agreement;
-- The path and the scorers are the default ones. For another file:
--     cargo run --release -p balanceddpo-schemas --bin schemas -- sql FILE > views.sql

-- One row per pair, as in the file.
CREATE OR REPLACE VIEW labels AS
SELECT * FROM read_parquet('{labels}');

-- One row per pair and scorer, so that GROUP BY scorer works.
CREATE OR REPLACE VIEW votes_long AS
SELECT pair_id, scorer, score_0, score_1, score_0 - score_1 AS margin, vote
FROM (
    SELECT pair_id, unnest([
        {'scorer': '{scorer}', 'score_0': {scorer}_score_0, 'score_1': {scorer}_score_1, 'vote': {scorer}_vote} --each ,
    ], recursive := true)
    FROM labels
);

-- How often two scorers vote alike, over the pairs for which both vote, and Cohen's kappa: agreement
-- beyond chance, given how often each votes +1. Null if one of them is constant.
CREATE OR REPLACE VIEW agreement AS
WITH vote_pairs AS (
    SELECT a.scorer AS scorer_a, b.scorer AS scorer_b,
           count(*) AS pairs,
           avg((a.vote = b.vote)::DOUBLE) AS observed,
           avg((a.vote = 1)::DOUBLE) AS rate_a,
           avg((b.vote = 1)::DOUBLE) AS rate_b
    FROM votes_long AS a
    JOIN votes_long AS b USING (pair_id)
    WHERE a.vote IS NOT NULL AND b.vote IS NOT NULL
    GROUP BY ALL
)
SELECT scorer_a, scorer_b, pairs, observed AS agreement,
       (observed - (rate_a * rate_b + (1 - rate_a) * (1 - rate_b)))
           / nullif(1 - (rate_a * rate_b + (1 - rate_a) * (1 - rate_b)), 0) AS kappa
FROM vote_pairs
ORDER BY scorer_a, scorer_b;

-- Every vote (Eq. 6), vote_sum and consensus (Eq. 7) computed again from the scores, with a row for
-- each difference: no row means that the file is right. A scorer without any vote in the file is not
-- a voter (relabel vote --voters). A vote without scores, of a scorer that compares the images, is
-- taken as it is. A row with the status "partial" ("non_finite" in files of earlier versions) has the
-- votes of the scorers that did not fail, and their sum if they decide it (--missing vote). The difference "tie" is a consensus although the votes cancel out,
-- which only relabel vote with a rule --ties other than "zero" writes.
CREATE OR REPLACE VIEW recheck AS
WITH voters AS (
    SELECT
        count({scorer}_vote) > 0 AS {scorer}_is_voter --each ,
    FROM labels
),
again AS (
    SELECT labels.*,
        CASE WHEN status IN ('ok', 'partial', 'non_finite') AND {scorer}_is_voter THEN CASE WHEN {scorer}_score_0 >= {scorer}_score_1 THEN 1 WHEN {scorer}_score_0 < {scorer}_score_1 THEN -1 WHEN {scorer}_score_0 IS NULL AND {scorer}_score_1 IS NULL THEN {scorer}_vote END END AS {scorer}_again --each ,
    FROM labels, voters
),
summed AS (
    SELECT *,
        CASE WHEN status = 'ok' OR (status = 'partial' AND vote_sum IS NOT NULL) THEN
            coalesce({scorer}_again, 0) --each +
        END AS sum_again
    FROM again
)
SELECT pair_id, difference, found, expected
FROM (
    SELECT pair_id, unnest([
        {'difference': '{scorer}_vote', 'found': {scorer}_vote::INTEGER, 'expected': {scorer}_again} --each ,
        , {'difference': 'vote_sum', 'found': vote_sum::INTEGER, 'expected': sum_again}
        , {'difference': CASE WHEN sum_again = 0 THEN 'tie' ELSE 'consensus' END,
           'found': consensus::INTEGER, 'expected': sign(sum_again)::INTEGER}
    ], recursive := true)
    FROM summed
)
WHERE found IS DISTINCT FROM expected;
