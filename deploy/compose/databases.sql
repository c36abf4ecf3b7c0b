-- The database that pipelines land in, beside Airflow's own.
CREATE DATABASE factory;
