"""What watches the service: rules, dashboards, and the files for a Prometheus and a Grafana beside compose."""
