#!/bin/bash
# Run once by the PostgreSQL image when its volume is new: MLflow has a role and a database of its own.
set -euo pipefail

psql --set ON_ERROR_STOP=1 --set "password=$(cat /run/secrets/mlflow_database_password)" \
    --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" <<'SQL'
CREATE ROLE mlflow LOGIN PASSWORD :'password';
CREATE DATABASE mlflow OWNER mlflow;
REVOKE CONNECT ON DATABASE mlflow FROM PUBLIC;
SQL
