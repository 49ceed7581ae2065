(()=>{"use strict";
const root=document.documentElement,all=(s,n=document)=>[...n.querySelectorAll(s)],dark=matchMedia("(prefers-color-scheme: dark)");
const theme=()=>root.dataset.theme||(dark.matches?"dark":"light");
const frames=()=>all("iframe");
const tell=()=>frames().forEach(f=>f.contentWindow&&f.contentWindow.postMessage({cellkeep:1,theme:theme()},"*"));
const store={get(){try{return localStorage.getItem("cellkeep-theme")}catch{return null}},set(v){try{localStorage.setItem("cellkeep-theme",v)}catch{}}};
const button=document.getElementById("theme");
const show=()=>{button.textContent=theme()==="dark"?"Light":"Dark";button.setAttribute("aria-label","Switch to "+(theme()==="dark"?"light":"dark")+" colours")};
const kept=store.get();
if(kept==="light"||kept==="dark")root.dataset.theme=kept;
button.onclick=()=>{root.dataset.theme=theme()==="dark"?"light":"dark";store.set(root.dataset.theme);show();tell()};
dark.addEventListener("change",()=>{show();tell()});
show();
const code=document.getElementById("code");
if(code){const inputs=all("details.in");let open=inputs.some(d=>d.open);
const name=()=>{code.textContent=open?"Hide code":"Show code"};
code.onclick=()=>{open=!open;inputs.forEach(d=>d.open=open);name()};name()}
all("pre.code").forEach(pre=>{const b=document.createElement("button");b.type="button";b.className="copy";b.textContent="Copy";
b.onclick=async()=>{const text=pre.querySelector("code").textContent;let ok=true;
try{await navigator.clipboard.writeText(text)}catch{const s=getSelection(),r=document.createRange();r.selectNodeContents(pre.querySelector("code"));s.removeAllRanges();s.addRange(r);try{ok=document.execCommand("copy")}catch{ok=false}s.removeAllRanges()}
b.textContent=ok?"Copied":"Failed";setTimeout(()=>b.textContent="Copy",1500)};pre.append(b)});
addEventListener("message",e=>{const m=e.data;if(!m||m.cellkeep!==1)return;const f=frames().find(f=>f.contentWindow===e.source);if(!f)return;
if(m.ready)f.contentWindow.postMessage({cellkeep:1,theme:theme()},"*");
if(typeof m.height==="number"&&m.height>=0)f.style.height=Math.min(Math.ceil(m.height),20000)+"px";
if(typeof m.drawn==="string")f.dataset.drawn=m.drawn.slice(0,200)});
tell();
const text=id=>{const n=document.getElementById(id);return n?n.textContent:""};
const draw=box=>{if(box.dataset.begun)return;box.dataset.begun="1";
const f=document.createElement("iframe");f.setAttribute("sandbox","allow-scripts allow-downloads");f.title=box.dataset.title;f.style.height=(box.dataset.height||"320")+"px";
const spec=box.querySelector("script").textContent,script=t=>"<script>"+t+"<\/script>";
// Foreign HTML that would load the library from elsewhere finds it here; its loader (AMD) answers with it.
const body=box.dataset.html?script(text("frame-loader"))+JSON.parse(spec).html:"<div id=plot></div><script type=application/json id=spec>"+spec+"<\/script>";
f.srcdoc=text("frame-head").replace("<html>","<html data-theme="+theme()+">")+script(text("lib-"+box.dataset.lib))+body+script(text("frame-script"));
box.append(f)};
const plots=all(".plot");
if(plots.length){const now=root.dataset.eager==="1"||!("IntersectionObserver" in window);
if(now)plots.forEach(draw);else{const seen=new IntersectionObserver(es=>es.forEach(e=>{if(e.isIntersecting){seen.unobserve(e.target);draw(e.target)}}),{rootMargin:"800px"});plots.forEach(p=>seen.observe(p))}
addEventListener("beforeprint",()=>plots.forEach(draw))}
})();
