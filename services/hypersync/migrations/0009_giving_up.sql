-- That a proposal is given up was a mark beside its state. The document is compact JSON, in which no text can hold an
-- unescaped quote.
UPDATE proposals SET state = 'giving_up',
    document = REPLACE(REPLACE(document, '"state":"applying"', '"state":"giving_up"'), '"given_up":true', '"given_up":false')
WHERE state = 'applying' AND document LIKE '%"given_up":true%';
