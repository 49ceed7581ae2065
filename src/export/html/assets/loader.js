window.define=()=>{};define.amd={};window.requirejs={config(){}};
window.require=(names,then)=>then(...names.map(name=>/vega-embed/.test(name)?window.vegaEmbed:/plotly/i.test(name)?window.Plotly:undefined));
require.config=()=>{};
