(()=>{"use strict";
const root=document.documentElement,post=m=>parent.postMessage(Object.assign({cellkeep:1},m),"*");
const measure=()=>post({height:Math.max(root.offsetHeight,document.body?document.body.scrollHeight:0)});
let redraw=()=>{};
addEventListener("message",e=>{const m=e.data;if(e.source!==parent||!m||m.cellkeep!==1)return;
if((m.theme==="light"||m.theme==="dark")&&root.dataset.theme!==m.theme){root.dataset.theme=m.theme;redraw()}measure()});
new ResizeObserver(measure).observe(root);
addEventListener("load",measure);
const dark=()=>root.dataset.theme==="dark";
const failed=e=>{const n=document.createElement("p");n.textContent="This plot could not be drawn: "+(e&&e.message||e);document.getElementById("plot").replaceChildren(n);post({drawn:"failed: "+(e&&e.message||e)});measure()};
const absent=uri=>{const n=document.createElement("p");n.textContent="Not loaded from the network: "+uri;document.getElementById("plot").after(n);measure();return Promise.reject(new Error("not loaded: "+uri))};
const local=uri=>/^(data:|#)/.test(uri);
const loader={load:uri=>local(uri)?fetch(uri).then(r=>r.text()):absent(uri),sanitize:uri=>local(uri)?Promise.resolve({href:uri}):Promise.reject(new Error("not loaded: "+uri)),http:absent,file:absent};
const data=document.getElementById("spec");
if(data){try{const spec=JSON.parse(data.textContent),box=document.getElementById("plot");
if(window.Plotly){const figure=spec.spec;
redraw=()=>{const ink=dark()?"#e3e7ec":"#1c2127",line=dark()?"#38414d":"#dfe3e8";
const base=figure.layout&&figure.layout.template||{},own=base.layout||{};
const axis=a=>Object.assign({},a,{gridcolor:line,linecolor:line,zerolinecolor:line});
const template=Object.assign({},base,{layout:Object.assign({},own,{paper_bgcolor:"rgba(0,0,0,0)",plot_bgcolor:"rgba(0,0,0,0)",font:Object.assign({},own.font,{color:ink}),modebar:{bgcolor:"rgba(0,0,0,0)",color:"#8b95a3",activecolor:ink},xaxis:axis(own.xaxis),yaxis:axis(own.yaxis)})});
const layout=Object.assign({margin:{t:figure.layout&&figure.layout.title?60:30,r:20,b:50,l:60}},figure.layout,{template,autosize:!(figure.layout&&figure.layout.width)});
Plotly.react(box,figure.data||[],layout,Object.assign({responsive:true,displaylogo:false},figure.config,{plotlyServerURL:"",sendData:false})).then(()=>{if(figure.frames)return Plotly.addFrames(box,figure.frames)}).then(()=>{post({drawn:"plotly"});measure()},failed)}}
else if(window.vegaEmbed){redraw=()=>{vegaEmbed(box,JSON.parse(JSON.stringify(spec.spec)),{mode:spec.mode,actions:false,renderer:"svg",ast:true,loader,logLevel:0,tooltip:{theme:root.dataset.theme},theme:dark()?"dark":undefined,config:{background:"transparent"}}).then(()=>{post({drawn:"vega"});measure()},failed)}}
redraw()}catch(e){failed(e)}}
post({ready:true});measure();
})();
