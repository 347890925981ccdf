// Sample questions in the 23 languages of Aya Vision: for any picture, and for those of the demonstration model.

export const SAMPLES = {
  ar: {
    name: "العربية",
    any: [
      "صف ما تراه في الصورة.",
      "ما النص المكتوب في الصورة؟",
      "ما الشيء اللافت للنظر هنا؟",
    ],
    demo: [
      "ما الرقم الموجود في أسفل اليسار؟",
      "ما الشكل الموجود في أعلى اليمين؟",
      "صف الصورة.",
    ],
  },
  cs: {
    name: "Čeština",
    any: [
      "Popiš, co je na obrázku.",
      "Jaký text je na obrázku?",
      "Co je tu zvláštního?",
    ],
    demo: [
      "Jaké číslo je vlevo dole?",
      "Jaký tvar je vpravo nahoře?",
      "Popiš obrázek.",
    ],
  },
  de: {
    name: "Deutsch",
    any: [
      "Beschreibe, was auf dem Bild zu sehen ist.",
      "Welcher Text steht auf dem Bild?",
      "Was fällt hier besonders auf?",
    ],
    demo: [
      "Welche Zahl steht unten links?",
      "Welche Form ist oben rechts?",
      "Beschreibe das Bild.",
    ],
  },
  el: {
    name: "Ελληνικά",
    any: [
      "Περίγραψε τι δείχνει η εικόνα.",
      "Τι κείμενο γράφει στην εικόνα;",
      "Τι ξεχωρίζει εδώ;",
    ],
    demo: [
      "Ποιος αριθμός υπάρχει κάτω αριστερά;",
      "Τι σχήμα υπάρχει πάνω δεξιά;",
      "Περίγραψε την εικόνα.",
    ],
  },
  en: {
    name: "English",
    any: [
      "Describe what you see in the picture.",
      "What text is written in the picture?",
      "What stands out here?",
    ],
    demo: [
      "What number is at the bottom left?",
      "What shape is at the top right?",
      "Describe the picture.",
    ],
  },
  es: {
    name: "Español",
    any: [
      "Describe lo que se ve en la imagen.",
      "¿Qué texto aparece en la imagen?",
      "¿Qué llama la atención aquí?",
    ],
    demo: [
      "¿Qué número hay abajo a la izquierda?",
      "¿Qué forma hay arriba a la derecha?",
      "Describe la imagen.",
    ],
  },
  fa: {
    name: "فارسی",
    any: [
      "آنچه در تصویر می‌بینی توصیف کن.",
      "چه متنی در تصویر نوشته شده است؟",
      "چه چیزی در اینجا جلب توجه می‌کند؟",
    ],
    demo: [
      "چه عددی پایین سمت چپ است؟",
      "چه شکلی بالا سمت راست است؟",
      "تصویر را توصیف کن.",
    ],
  },
  fr: {
    name: "Français",
    any: [
      "Décris ce que tu vois sur l'image.",
      "Quel texte est écrit sur l'image ?",
      "Qu'est-ce qui attire l'attention ici ?",
    ],
    demo: [
      "Quel nombre y a-t-il en bas à gauche ?",
      "Quelle forme y a-t-il en haut à droite ?",
      "Décris l'image.",
    ],
  },
  he: {
    name: "עברית",
    any: [
      "תאר מה רואים בתמונה.",
      "איזה טקסט כתוב בתמונה?",
      "מה בולט כאן?",
    ],
    demo: [
      "איזה מספר יש למטה משמאל?",
      "איזו צורה יש למעלה מימין?",
      "תאר את התמונה.",
    ],
  },
  hi: {
    name: "हिन्दी",
    any: [
      "चित्र में जो दिखता है उसका वर्णन कीजिए।",
      "चित्र में क्या लिखा है?",
      "यहाँ क्या ख़ास दिखता है?",
    ],
    demo: [
      "नीचे बाईं ओर कौन सी संख्या है?",
      "ऊपर दाईं ओर कौन सी आकृति है?",
      "चित्र का वर्णन कीजिए।",
    ],
  },
  id: {
    name: "Bahasa Indonesia",
    any: [
      "Jelaskan apa yang terlihat pada gambar ini.",
      "Teks apa yang tertulis pada gambar ini?",
      "Apa yang menarik perhatian di sini?",
    ],
    demo: [
      "Angka apa yang ada di kiri bawah?",
      "Bentuk apa yang ada di kanan atas?",
      "Jelaskan gambar ini.",
    ],
  },
  it: {
    name: "Italiano",
    any: [
      "Descrivi ciò che si vede nell'immagine.",
      "Quale testo c'è scritto nell'immagine?",
      "Che cosa salta all'occhio qui?",
    ],
    demo: [
      "Che numero c'è in basso a sinistra?",
      "Che forma c'è in alto a destra?",
      "Descrivi l'immagine.",
    ],
  },
  ja: {
    name: "日本語",
    any: [
      "画像に写っているものを説明してください。",
      "画像には何と書いてありますか？",
      "ここで目を引くものは何ですか？",
    ],
    demo: [
      "左下の数字は何ですか？",
      "右上の形は何ですか？",
      "画像を説明してください。",
    ],
  },
  ko: {
    name: "한국어",
    any: [
      "그림에 보이는 것을 설명해 주세요.",
      "그림에 어떤 글이 적혀 있나요?",
      "여기서 눈에 띄는 것은 무엇인가요?",
    ],
    demo: [
      "왼쪽 아래에 무슨 숫자가 있나요?",
      "오른쪽 위에 무슨 모양이 있나요?",
      "그림을 설명하세요.",
    ],
  },
  nl: {
    name: "Nederlands",
    any: [
      "Beschrijf wat er op de afbeelding te zien is.",
      "Welke tekst staat er op de afbeelding?",
      "Wat valt hier op?",
    ],
    demo: [
      "Welk getal staat er linksonder?",
      "Welke vorm staat er rechtsboven?",
      "Beschrijf de afbeelding.",
    ],
  },
  pl: {
    name: "Polski",
    any: [
      "Opisz, co widać na obrazie.",
      "Jaki tekst jest na obrazie?",
      "Co się tu wyróżnia?",
    ],
    demo: [
      "Jaka liczba jest w lewym dolnym rogu?",
      "Jaki kształt jest w prawym górnym rogu?",
      "Opisz obraz.",
    ],
  },
  pt: {
    name: "Português",
    any: [
      "Descreva o que se vê na imagem.",
      "Que texto está escrito na imagem?",
      "O que chama a atenção aqui?",
    ],
    demo: [
      "Que número há embaixo à esquerda?",
      "Que forma há em cima à direita?",
      "Descreva a imagem.",
    ],
  },
  ro: {
    name: "Română",
    any: [
      "Descrie ce se vede în imagine.",
      "Ce text este scris în imagine?",
      "Ce iese în evidență aici?",
    ],
    demo: [
      "Ce număr este jos în stânga?",
      "Ce formă este sus în dreapta?",
      "Descrie imaginea.",
    ],
  },
  ru: {
    name: "Русский",
    any: [
      "Опиши, что видно на изображении.",
      "Какой текст написан на изображении?",
      "Что здесь бросается в глаза?",
    ],
    demo: [
      "Какое число слева внизу?",
      "Какая фигура справа вверху?",
      "Опиши изображение.",
    ],
  },
  tr: {
    name: "Türkçe",
    any: [
      "Resimde ne gördüğünü anlat.",
      "Resimde ne yazıyor?",
      "Burada dikkat çeken ne var?",
    ],
    demo: [
      "Sol altta hangi sayı var?",
      "Sağ üstte hangi şekil var?",
      "Resmi betimle.",
    ],
  },
  uk: {
    name: "Українська",
    any: [
      "Опиши, що видно на зображенні.",
      "Який текст написано на зображенні?",
      "Що тут впадає в око?",
    ],
    demo: [
      "Яке число зліва внизу?",
      "Яка фігура справа вгорі?",
      "Опиши картинку.",
    ],
  },
  vi: {
    name: "Tiếng Việt",
    any: [
      "Mô tả những gì thấy trong hình.",
      "Trong hình có viết chữ gì?",
      "Điều gì nổi bật ở đây?",
    ],
    demo: [
      "Số ở góc dưới bên trái là số nào?",
      "Hình ở góc trên bên phải là hình gì?",
      "Mô tả hình ảnh.",
    ],
  },
  zh: {
    name: "中文",
    any: [
      "描述图片中的内容。",
      "图片里写了什么文字？",
      "这里有什么引人注目的地方？",
    ],
    demo: [
      "左下角是什么数字？",
      "右上角是什么形状？",
      "描述这张图片。",
    ],
  },
};
