// Shows asyncapi.yaml by the AsyncAPI project's own component, which brings its own parser.
AsyncApiStandalone.render(
  { schema: { url: "asyncapi.yaml" }, config: { show: { sidebar: true, errors: true } } },
  document.getElementById("asyncapi"),
);
