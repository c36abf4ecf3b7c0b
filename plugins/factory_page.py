"""The Factory page, where the provider is on the path but not installed: installed, it brings the page by itself."""

from importlib.metadata import entry_points

if not any(entry.name == "factory_page" for entry in entry_points(group="airflow.plugins")):
    from airflow_provider_factory.plugins.page import FactoryPagePlugin

    __all__ = ["FactoryPagePlugin"]
