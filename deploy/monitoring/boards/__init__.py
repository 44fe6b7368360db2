"""The four dashboards."""

from deploy.monitoring.boards import broker, overview, send_pipeline, session_health

BOARDS = (overview.BOARD, session_health.BOARD, send_pipeline.BOARD, broker.BOARD)
