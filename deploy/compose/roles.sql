-- Run once, when the database is made, as on Kubernetes (../kubernetes/components/cnpg/cluster.yaml): the owner changes
-- the schema (migrate), all processes use whatsapp_qr, which only reads and writes rows. Passwords come after it.
CREATE ROLE whatsapp_qr_owner LOGIN;
ALTER DATABASE whatsapp_qr OWNER TO whatsapp_qr_owner;
CREATE ROLE whatsapp_qr_rows NOLOGIN;
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT ALL ON SCHEMA public TO whatsapp_qr_owner;
GRANT USAGE ON SCHEMA public TO whatsapp_qr_rows;
ALTER DEFAULT PRIVILEGES FOR ROLE whatsapp_qr_owner IN SCHEMA public
    GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO whatsapp_qr_rows;
ALTER DEFAULT PRIVILEGES FOR ROLE whatsapp_qr_owner IN SCHEMA public
    GRANT USAGE, SELECT ON SEQUENCES TO whatsapp_qr_rows;
CREATE ROLE whatsapp_qr LOGIN IN ROLE whatsapp_qr_rows;
