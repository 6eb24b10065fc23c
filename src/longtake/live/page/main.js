// A placeholder: says what there is. The protocol is docs/live-protocol.md.
const info = await (await fetch("/api/info")).json();
document.getElementById("status").textContent = `Longtake ${info.version}, model ${info.models[0].name}`;
